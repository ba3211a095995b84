"""Two gloo processes under torchrun against one: the same losses, the same detections, the same weights after a cut, and one writer."""
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bafe_nb import app, bafenet, evaluation, examples, losses, scenes, schedules, training
from bafe_nb.boxes import InputError
from stopping import Stopping

HERE = Path(__file__).parent
DENSE, FINE = bafenet.PRESETS["bafe-small"], bafenet.PRESETS["bafe-hr-nano"]
MODELS = {"dense": dataclasses.replace(DENSE, name="dense", widths=(8, 12), head=dataclasses.replace(DENSE.head, in_channels=8, channels=8, target_mask=True)),
          "fine": dataclasses.replace(FINE, name="fine", widths=(8, 12), down=1, head=dataclasses.replace(FINE.head, in_channels=8, channels=8)),
          "paper": dataclasses.replace(DENSE, name="paper", widths=(8, 12), head=dataclasses.replace(      # its head: selection without gradient, group norm
              bafenet.PRESETS["paper-r18"].head, in_channels=12, channels=32, convs=1, strides=(4,), ranges=((-1, 100000),)))}
SHORT = schedules.Schedule("short", epochs=20, batch=5, lr=1e-3, warm_up=0.2, crop=48, focus=0.7, paste="none", average=0.9)


def config(name, **changes):
    return training.TrainConfig(MODELS[name], dataclasses.replace(SHORT, **changes), device="cpu", threads=1)


def twenty_steps(name):
    """Losses of 20 steps with normalisation as at inference; batches of 5 and, at the end of an epoch, 3."""
    paper = dict(optimiser="dadapt-adam", lr=1.0, policy="step", warm_up=500, warm_up_factor=1 / 3, average=None, clip=None) if name == "paper" else {}
    run = training.Run(config(name, **paper), examples.Examples(scenes.Scenes(13), config(name, **paper).schedule, 0))
    run.model.eval()
    for batch in itertools.islice(examples.loader(run.examples), 20): training.advance(run, batch)
    return training.collect(run, "nowhere")


def cut_and_resumed(out):
    """A run in one go, and one that is cut and resumed, with dropout and with normalisation over each process's images."""
    c = dataclasses.replace(config("fine", epochs=3, batch=4), save_steps=2)
    training.train(c, scenes.Scenes(8), out / "whole", progress=False)
    try: training.train(c, Stopping(8, 7), out / "cut", progress=False)
    except KeyboardInterrupt: pass
    return training.train(c, scenes.Scenes(8), out / "cut", resume=True, progress=False)


def refusals(out):
    """The lines that an unfit batch and a foreign folder are answered with."""
    lines = []
    for act in (lambda: training.train(config("fine", batch=6), scenes.Scenes(13), out / "new", progress=False),
                lambda: training.train(config("fine", batch=4), scenes.Scenes(8), out / "whole", progress=False)):
        try: act()
        except InputError as error: lines.append(str(error))
    return lines


def work(out):
    """What each of the two processes does."""
    written = []
    def watch(event, args):
        if event == "open" and isinstance(args[0], (str, Path)) and str(out) in str(args[0]) and args[2] & (os.O_WRONLY | os.O_RDWR): written.append(str(args[0]))
    sys.addaudithook(watch)
    with training.together(training.TrainConfig(device="cpu")):
        rank, count = losses.processes()
        x = torch.tensor(2.0 + rank, requires_grad=True)
        losses.shared(x).backward()
        told = dict(rank=rank, count=count, sum=float(losses.shared(x)), gradient=float(x.grad), number=float(losses.shared(1 + rank)),
                    mean=float(losses.shared_mean(torch.tensor(2.0 + rank), 1 + 2 * rank)), losses={name: twenty_steps(name) for name in MODELS},
                    keys=list(itertools.chain(*examples.Keys(examples.Examples(scenes.Scenes(13), SHORT, 0)))), row=cut_and_resumed(out), refused=refusals(out))
        model = bafenet.load_weights(out / "whole/weights.safetensors")
        predictions, _ = evaluation.predict_all(model.eval(), scenes.Scenes(7), progress=False, reading=bafenet.Reading(least=0.001))
        told["found"] = [[name, p.detections.tolist(), int(p.sky.sum()), int(p.mask.sum())] for name, p in predictions.items()]
        told["written"] = written
    (out.parent / f"told-{rank}.json").write_text(json.dumps(told))


def torchrun(*words):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE))), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words], capture_output=True, text=True,
                          env=environment)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the two processes report, and the folder they wrote into."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "script.py"
    script.write_text(f"from pathlib import Path; import test_distributed; test_distributed.work(Path({str(folder / 'out')!r}))")
    done = torchrun(str(script))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)], folder / "out"


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_shared_numbers_by_hand(told):
    for rank, part in enumerate(told[0]):
        assert (part["rank"], part["count"], part["sum"], part["number"]) == (rank, 2, 5.0, 3.0)
        assert part["gradient"] == 2 and part["mean"] == pytest.approx((2 * 1 + 3 * 3) / 4)


@pytest.mark.parametrize("name", MODELS)
def test_twenty_steps_of_two_processes_equal_those_of_one(told, one_thread, name):
    alone = twenty_steps(name)
    assert len(alone) == 20 and len({row["total"] for row in alone}) == 20
    for part in told[0]:
        for a, b in zip(alone, part["losses"][name]):
            assert a.keys() == b.keys() and all(abs(a[k] - b[k]) <= 1e-5 * max(1, abs(a[k])) for k in a), (a, b)
    assert told[0][0]["losses"][name] == told[0][1]["losses"][name]


def test_two_processes_share_each_batch_in_the_order_of_one(told):
    whole = list(examples.Keys(examples.Examples(scenes.Scenes(13), SHORT, 0)))
    parts = [iter(part["keys"]) for part in told[0]]
    for keys in whole:
        for k, key in enumerate(keys): assert tuple(next(parts[k % 2])) == key
    assert all(next(part, None) is None for part in parts)


def test_a_cut_run_of_two_processes_ends_with_the_same_weights(told):
    (one, _), out = told
    files = [sorted(str(p.relative_to(out / name)) for p in (out / name).rglob("*")) for name in ("whole", "cut")]
    assert files[0] == files[1] and "weights.safetensors" in files[0]
    a, b = (bafenet.load_weights(out / name / "weights.safetensors").state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (out / "whole/losses.csv").read_bytes() == (out / "cut/losses.csv").read_bytes() and one["row"]["processes"] == 2


def test_only_the_first_process_writes(told):
    assert told[0][0]["written"] and not told[0][1]["written"]


def test_what_cannot_be_split_is_refused_by_all(told):
    for part in told[0]:
        assert part["refused"][0] == "the last batch of an epoch has 1 of 13 examples for 2 processes: use a batch of 7"
        assert "holds a run: resume it" in part["refused"][1]
    assert not (told[1] / "new").exists()


def test_a_run_of_two_processes_goes_on_with_one(told, one_thread, tmp_path):
    state = torch.load(sorted((told[1] / "whole/checkpoints").glob("*.pt"))[-1], weights_only=True)
    c = dataclasses.replace(config("fine", epochs=3, batch=4), save_steps=2)
    row = training.train(c, scenes.Scenes(8), told[1] / "whole", resume=True, progress=False)
    assert row["steps"] == state["step"] == 6 and "processes" not in row


def test_sharded_evaluation_equals_the_single_one(told, one_thread):
    model = bafenet.load_weights(told[1] / "cut/weights.safetensors").eval()
    predictions, _ = evaluation.predict_all(model, scenes.Scenes(7), progress=False, reading=bafenet.Reading(least=0.001))
    alone = [[name, p.detections.tolist(), int(p.sky.sum()), int(p.mask.sum())] for name, p in predictions.items()]
    assert sum(len(found) for _, found, _, _ in alone) > 20 and told[0][0]["found"] == told[0][1]["found"] == alone


def test_the_command_line_under_torchrun(tmp_path):
    bafe = lambda *words: torchrun("-m", "bafe_nb.app", *words)
    done = bafe("train", "bafe-small", "--data", "scenes", "--split", "val_v2", "--epochs", "1", "--batch", "64", "--device", "cpu", "--out", str(tmp_path / "run"), "--ledger", str(tmp_path / "l.csv"))
    assert done.returncode == 0 and done.stdout.count("bafe-small: ") == 1, done.stderr[-2000:]
    assert len((tmp_path / "l.csv").read_text().splitlines()) == 2 and json.loads((tmp_path / "run/row.json").read_text())["processes"] == 2


def test_a_line_says_which_process_it_comes_from(monkeypatch, capsys):
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert app.main(["train", "nothing", "--data", "scenes", "--out", "x"]) == 2
        said.append(capsys.readouterr().err)
    assert said[0].startswith("bafe: unknown preset") and said[1].startswith("bafe: process 1: unknown preset")
