"""Everything about the package is read from settings.ini; nothing is repeated here."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
settings = ConfigParser(delimiters=["="])
settings.read(here / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]


def words(key):
    return cfg.get(key, "").split()


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    url=cfg["git_url"],
    license=cfg["license"],
    keywords=words("keywords"),
    packages=["bafe_nb"],
    package_data={"bafe_nb": ["tables/*"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=words("requirements"),
    extras_require={"lab": words("lab_requirements"),
                    "docs": words("docs_requirements"),
                    "dev": words("lab_requirements") + words("docs_requirements") + words("dev_requirements")},
    entry_points={"console_scripts": words("console_scripts")},
)
