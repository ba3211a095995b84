"""Training: the configuration, resume to the bit, and errors of one line."""
import dataclasses
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bafe_nb import bafenet, densesirst, examples, fine, scenes, schedules, training
from bafe_nb.boxes import InputError
from stopping import Stopping

BASE = bafenet.PRESETS["bafe-hr-nano"]
TINY = dataclasses.replace(BASE, name="tiny", widths=(8, 12), down=1, head=dataclasses.replace(BASE.head, in_channels=8, channels=8))
SHORT = schedules.Schedule("short", epochs=3, batch=4, lr=4e-3, policy="one-cycle", warm_up=0.2, crop=64, average=0.9)


def config(**changes):
    return training.TrainConfig(**{**dict(preset=TINY, schedule=SHORT, threads=1, device="cpu"), **changes})


def same_weights(a, b):
    one, two = (torch.load(sorted((Path(p) / "checkpoints").glob("*.pt"))[-1], weights_only=True) for p in (a, b))
    assert one["step"] == two["step"]
    for part in ("model", "average"):
        assert one[part].keys() == two[part].keys() and all(torch.equal(one[part][k], two[part][k]) for k in one[part])
    for mine, theirs in zip(one["optimiser"]["state"].values(), two["optimiser"]["state"].values()):
        assert all(torch.equal(torch.as_tensor(mine[k]), torch.as_tensor(theirs[k])) for k in mine)
    assert (Path(a) / "losses.csv").read_bytes() == (Path(b) / "losses.csv").read_bytes()
    final = [bafenet.load_weights(Path(p) / "weights.safetensors").state_dict() for p in (a, b)]
    assert all(torch.equal(final[0][k], final[1][k]) for k in final[0])


# configuration ----------------------------------------------------------------------------------------------------------------------

def test_each_preset_has_its_schedule():
    assert training.TrainConfig("paper-r50").schedule.name == "paper" and training.TrainConfig("bafe-small").schedule.name == "small"
    assert training.TrainConfig("bafe-hr-nano").schedule.name == "hr" and training.TrainConfig("bafe-hr").schedule.name == "broad"
    with pytest.raises(InputError, match="choose one of paper, small, hr, broad, tune"): training.TrainConfig(schedule="fast")
    with pytest.raises(InputError, match="unknown preset"): training.TrainConfig("resnet")


# the loop ------------------------------------------------------------------------------------------------------------------------------

def test_loss_falls_on_eight_scenes(tmp_path):
    schedule = dataclasses.replace(SHORT, epochs=20, batch=4, optimiser="muon", lr=1e-2, paste="none")
    seen = []
    row = training.train(config(schedule=schedule), scenes.Scenes(8), tmp_path / "run", progress=False, each_epoch=lambda model, epoch: seen.append((model.training, epoch)))
    table = np.genfromtxt(tmp_path / "run/losses.csv", delimiter=",", names=True)
    assert table["box"][-8:].mean() < 0.6 * table["box"][:4].mean() and table["total"][-8:].mean() < 0.85 * table["total"][:4].mean()
    assert seen == [(False, k) for k in range(1, 21)]
    assert row["steps"] == len(table) == 40 and row["passes"] == 160 and row["preset"] == "tiny" and row["parameters"] == sum(p.numel() for p in bafenet.build(TINY).parameters())
    assert row["loss_total"] == pytest.approx(table["total"][-2:].mean()) and row == json.loads((tmp_path / "run/row.json").read_text())
    loaded = bafenet.load_weights(tmp_path / "run/weights.safetensors")
    assert loaded.preset == TINY
    state = torch.load(sorted((tmp_path / "run/checkpoints").glob("*.pt"))[-1], weights_only=True)
    assert all(torch.equal(v, state["average"][k]) for k, v in loaded.state_dict().items())
    assert len(list((tmp_path / "run/checkpoints").glob("*"))) == 2


@pytest.mark.parametrize("preset", ["bafe-small", "paper-r18"])
def test_every_trainable_parameter_gets_a_gradient(preset):
    torch.manual_seed(0)
    c = training.TrainConfig(preset, device="cpu")
    model = bafenet.build(c.preset).train()
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d) and not m.weight.any(): torch.nn.init.ones_(m.weight)   # a residual branch that starts at zero hides what is before it
    data = scenes.Scenes(4)
    s = dataclasses.replace(c.schedule, crop=160, squeeze=None, batch=2, paste="none")
    if preset == "paper-r18": s = dataclasses.replace(s, boxes="corrected")
    samples = [dataclasses.replace(x, boxes=np.float32([[30, 30, 40, 40], [5, 5, 85, 85], [0, 0, 159, 159]]), real=np.zeros(3, bool))
               for x in (examples.Examples(data, s, 0)[(0, k)] for k in range(2))]
    training.loss_of(model, examples.batch(samples))["total"].backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum())}
    assert {n for n in without if "attention_mask" not in n} == set()
    assert preset != "paper-r18" or without == set(bafenet.NEVER_TRAINED)


@pytest.mark.parametrize("optimiser, lr", [("adamw", 4e-3), ("muon", 6e-3), ("dadapt-adam", 1.0)])
def test_resume_is_bit_for_bit(tmp_path, optimiser, lr):
    schedule = dataclasses.replace(SHORT, optimiser=optimiser, lr=lr, paste="none")
    c = config(schedule=schedule, save_steps=2)
    whole = training.train(c, scenes.Scenes(12), tmp_path / "whole", progress=False)
    for stops, k in enumerate((17, 14)):                                  # in the middle of epoch 1, then in the middle of a later batch
        with pytest.raises(KeyboardInterrupt): training.train(c, Stopping(12, k), tmp_path / "cut", resume=stops > 0, progress=False)
        torch.rand(7)                                                      # what happens in between must not matter
    row = training.train(c, scenes.Scenes(12), tmp_path / "cut", resume=True, progress=False)
    same_weights(tmp_path / "whole", tmp_path / "cut")
    assert {k: v for k, v in row.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}


# accidents: each in a forked process, so that the libraries are loaded once -----------------------------------------------------------------

LONG = dataclasses.replace(SHORT, epochs=12, paste="none")


def forked(act):
    """Number of a forked process that does `act()` and prints its InputError."""
    number = os.fork()
    if number: return number
    try: act()
    except InputError as error: print("line:", error, flush=True)
    except BaseException as error: print("no line but", repr(error), flush=True)
    finally: os._exit(0)


def ended(number):
    """How a process ended: the signal that killed it, or 0."""
    status = os.waitpid(number, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def killed_at_renaming(run):
    """`run()`, killed when its second checkpoint is written and not yet renamed."""
    seen = []
    def watch(event, args):
        if event == "os.rename" and str(args[0]).endswith(".pt.part"):
            seen.append(args)
            if len(seen) == 2: os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    run()


def killed_in_the_file(run):
    """`run()`, killed by the system in the middle of the file of its first checkpoint."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL); resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))
    run()


def ten_kills(out):
    """Ten processes that train, each killed: seven at random moments, three while a checkpoint is written. Returns how they ended."""
    torch.set_num_threads(1)
    rng, ends = np.random.default_rng(), []
    run = lambda: training.train(config(schedule=LONG, save_steps=1), scenes.Scenes(12), out, resume=True, progress=False)
    newest = lambda: max((int(p.stem) for p in (out / "checkpoints").glob("*.pt")), default=0)
    for k in range(7):
        goal, number = newest() + rng.integers(0, 3), forked(run)
        while newest() < goal: time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.04)); os.kill(number, signal.SIGKILL)
        ends.append(ended(number))
    for how in (killed_at_renaming, killed_in_the_file, killed_at_renaming):
        ends.append(ended(forked(lambda: how(run))))
        assert list((out / "checkpoints").glob("*.part"))
    return ends


def short_of_space(out):
    """The same run with files of 15 kB at most: its line."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))
    training.train(config(schedule=LONG, save_steps=1), scenes.Scenes(12), out, resume=True, progress=False)


def short_of_memory(out, batch):
    """One step with 600 MB left for everything."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 600_000_000
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    schedule = dataclasses.replace(SHORT, epochs=1, crop=256, batch=batch, paste="none")
    training.train(config(schedule=schedule), scenes.Scenes(batch), out, progress=False)


def apart(words):
    """Run python code with this module imported in a process of its own; what it prints, as lines."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(here.parent), str(here))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", "from test_training import *; " + words], capture_output=True, text=True, env=environment, timeout=550)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_ten_kills_and_a_full_disk_lose_nothing(tmp_path):
    cut = tmp_path / "cut"
    ends, line = apart(f"out = Path({str(cut)!r}); print(ten_kills(out)); ended(forked(lambda: short_of_space(out)))")
    assert json.loads(ends) == [signal.SIGKILL] * 8 + [signal.SIGXFSZ, signal.SIGKILL] and not (cut / "weights.safetensors").exists()
    newest = sorted((cut / "checkpoints").glob("*.pt"))[-1]
    assert re.fullmatch(rf"line: {cut}/checkpoints/\d+.pt cannot be written \(File too large\): free some space or choose another folder; what was there is intact", line)
    assert 0 < torch.load(newest, weights_only=True)["step"] == int(newest.stem) < 36
    training.train(config(schedule=LONG, save_steps=1), scenes.Scenes(12), tmp_path / "whole", progress=False)
    training.train(config(schedule=LONG, save_steps=1), scenes.Scenes(12), cut, resume=True, progress=False)
    same_weights(tmp_path / "whole", cut)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux: memory is limited for a process")
def test_too_little_memory_names_the_batch_that_fits(tmp_path):
    line, = apart(f"ended(forked(lambda: short_of_memory(Path({str(tmp_path / 'run')!r}), 64)))")
    found = re.fullmatch(r"line: out of memory at step 0 with batch 64: a batch of (\d+) fits; no checkpoint was written yet", line)
    assert found, line
    assert apart(f"short_of_memory(Path({str(tmp_path / 'half')!r}), {found[1]})") == [] and (tmp_path / "half/weights.safetensors").exists()


def test_half_written_and_damaged_checkpoints_are_passed_over(tmp_path):
    c = config(save_steps=1, schedule=dataclasses.replace(SHORT, paste="none"))
    with pytest.raises(KeyboardInterrupt): training.train(c, Stopping(12, 20), tmp_path / "cut", progress=False)
    places = sorted((tmp_path / "cut/checkpoints").glob("*"))
    assert [p.name for p in places] == ["00000004.pt", "00000005.pt"]
    places[-1].write_bytes(places[-1].read_bytes()[:5000])
    (tmp_path / "cut/checkpoints/00000006.pt.part").write_bytes(b"half")
    training.train(c, scenes.Scenes(12), tmp_path / "whole", progress=False)
    training.train(c, scenes.Scenes(12), tmp_path / "cut", resume=True, progress=False)
    same_weights(tmp_path / "whole", tmp_path / "cut")
    for p in (tmp_path / "cut/checkpoints").glob("*.pt"): p.write_bytes(b"")
    with pytest.raises(InputError, match="none of 2 checkpoints can be read"): training.train(c, scenes.Scenes(12), tmp_path / "cut", resume=True, progress=False)


# bad input -----------------------------------------------------------------------------------------------------------------------------

def test_a_loss_that_is_no_number_names_step_images_and_mend(tmp_path):
    bad = dataclasses.replace(SHORT, lr=1e30, warm_up=0, average=None, clip=None, paste="none")
    with pytest.raises(InputError, match=r"step \d+: the \w+ loss is (nan|inf) on scene-\d+, .*lower lr") as caught:
        training.train(config(schedule=bad, save_steps=1), scenes.Scenes(8), tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    state = torch.load(sorted((tmp_path / "run/checkpoints").glob("*.pt"))[-1], weights_only=True)
    assert all(np.isfinite(row["total"]) for row in state["history"]) and not (tmp_path / "run/weights.safetensors").exists()


def test_a_run_is_not_overwritten_nor_resumed_as_another(tmp_path):
    training.train(config(), scenes.Scenes(4), tmp_path / "run", progress=False)
    before = bafenet.load_weights(tmp_path / "run/weights.safetensors").state_dict()
    with pytest.raises(InputError, match="holds a run: resume it"): training.train(config(), scenes.Scenes(4), tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="seed was 0 and is now 1"): training.train(config(seed=1), scenes.Scenes(4), tmp_path / "run", resume=True, progress=False)
    with pytest.raises(InputError, match="schedule.lr was 0.004 and is now 0.001"):
        training.train(config(schedule=dataclasses.replace(SHORT, lr=1e-3)), scenes.Scenes(4), tmp_path / "run", resume=True, progress=False)
    with pytest.raises(InputError, match="images was 4 and is now 5"): training.train(config(), scenes.Scenes(5), tmp_path / "run", resume=True, progress=False)
    training.train(config(), scenes.Scenes(4), tmp_path / "run", resume=True, progress=False)
    assert all(torch.equal(before[k], v) for k, v in bafenet.load_weights(tmp_path / "run/weights.safetensors").state_dict().items())
    with pytest.raises(InputError, match="the dataset is empty"): training.train(config(), [], tmp_path / "other", progress=False)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    path = tmp_path / "data"
    training.write_whole(path, b"old")
    code = ("import resource, signal, sys; from bafe_nb import training; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
            f"training.write_whole({str(path)!r}, bytes(5000))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)})
    assert "InputError" in done.stderr and "cannot be written (File too large): free some space" in done.stderr
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


class Dying(Stopping):
    """Scenes whose reader process ends without a word."""
    def __getitem__(self, i):
        if i == 3 and torch.utils.data.get_worker_info(): os._exit(3)
        return self.scenes[i]


def test_a_dead_loader_process_is_named(tmp_path):
    c = config(schedule=dataclasses.replace(SHORT, paste="none"), workers=1)
    with pytest.raises(InputError, match=r"a loader process died at step \d.*resume the run"): training.train(c, Dying(8, 0), tmp_path / "run", progress=False)


class Broken(Stopping):
    """Scenes with one damaged file."""
    def __getitem__(self, i):
        if i == 3: raise InputError("scene 3 is cut off: fetch it again")
        return self.scenes[i]


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_input_is_one_line_from_a_loader_process_too(tmp_path, workers):
    c = config(schedule=dataclasses.replace(SHORT, paste="none"), workers=workers)
    with pytest.raises(InputError) as caught: training.train(c, Broken(8, 0), tmp_path / "run", progress=False)
    assert str(caught.value) == "scene 3 is cut off: fetch it again"


def test_a_run_begins_from_the_weights_of_another(tmp_path):
    row = training.train(config(), scenes.Scenes(4), tmp_path / "first", progress=False); assert row["start"] == "random"
    given = tmp_path / "first/weights.safetensors"; first = bafenet.load_weights(given).state_dict()
    for start in (tmp_path / "first", given):
        run = training.begin(config(seed=5, start=str(start)), scenes.Scenes(4), tmp_path / f"second-{start.name}")
        for model in (run.model, run.average.model): assert all(torch.equal(first[k], v) for k, v in model.state_dict().items())
    c = config(seed=5, start=str(given)); row = training.train(c, scenes.Scenes(4), tmp_path / "third", progress=False)
    digest = hashlib.sha256(given.read_bytes()).hexdigest()[:8]; assert row["start"] == f"weights {digest}" and row["preset"] == "tiny, tuned"
    given.write_bytes((tmp_path / "third/weights.safetensors").read_bytes())
    with pytest.raises(InputError, match=f"start was '{digest}' and is now"): training.train(c, scenes.Scenes(4), tmp_path / "third", resume=True, progress=False)
    with pytest.raises(InputError, match="holds tiny, another network than bafe-small: train tiny"): training.Run(config(preset="bafe-small", start=str(given)), examples.Examples(scenes.Scenes(4), SHORT, 0))
    with pytest.raises(InputError, match="imagenet weights are for a ResNet"): training.TrainConfig("paper-r18", imagenet="x.pth", start=str(given))
    with pytest.raises(InputError, match="no weights to start from"): training.train(config(start="nowhere"), scenes.Scenes(4), tmp_path / "fourth", progress=False)


def test_real_targets_count_more_where_the_schedule_says_so(data):
    sample = next(s for s in densesirst.DenseSIRST(data, "trainval_v2") if s.real.any() and not s.real.all()); b = examples.batch([sample])
    assert torch.equal(b.real[0], torch.from_numpy(sample.real))
    model = bafenet.build(TINY).eval(); one, three = (training.loss_of(model, b, real_weight=w) for w in (1.0, 3.0))
    weights = torch.where(b.real[0], 3.0, 1.0); maps = model(model.normalise(b.images))
    assert three["class"] > one["class"] and torch.allclose(three["class"], fine.fine_losses(model.bbox_head, maps, b.boxes, b.sky, b.targets, weights)["class"])
    with pytest.raises(InputError, match="real_weight is 3.0, which only a fine head can use"): training.TrainConfig("bafe-small", dataclasses.replace(SHORT, real_weight=3.0))
    with pytest.raises(InputError, match="real_weight is 0: use a number above 0"): dataclasses.replace(SHORT, real_weight=0)


def test_no_gpu_is_said(tmp_path):
    if torch.cuda.is_available(): pytest.skip("a GPU is at hand")
    for device in ("cuda", "cuda:1"):
        with pytest.raises(InputError, match=f"'{device}': no GPU is at hand"): training.train(config(device=device), scenes.Scenes(4), tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="'gpu' is unknown: use 'auto'"): training.train(config(device="gpu"), scenes.Scenes(4), tmp_path / "run", progress=False)


def test_a_run_from_before_a_field_existed_goes_on(tmp_path):
    """Schedule.stretch came later: config.json without it means its default, and no other value."""
    config = training.TrainConfig(TINY, SHORT, threads=1, device="cpu")
    training.begin(config, scenes.Scenes(4), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    old = json.loads(path.read_text()); del old["schedule"]["stretch"]; path.write_text(json.dumps(old))
    training.begin(config, scenes.Scenes(4), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="stretch was 0.0 and is now 0.5"):
        training.begin(dataclasses.replace(config, schedule=dataclasses.replace(SHORT, stretch=0.5)), scenes.Scenes(4), tmp_path / "run", resume=True)


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path):
    """The corrected command may take the same folder."""
    with pytest.raises(InputError, match="no weights to start from"): training.train(config(start="nowhere"), scenes.Scenes(4), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    training.train(config(), scenes.Scenes(4), tmp_path / "run", progress=False)
