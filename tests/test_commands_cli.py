"""The command line as users call it: what is printed, what is written, and that it is what the parts give."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import segment_anything
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import samtune
from fake_records import fake_cells, fake_execute
from own_pictures import HEIGHT, QUICK, WIDTH, disc, run, tiny_sam, tune, use_tiny_sam, write_pictures
from samtune.commands import cli, notebooks, predict, search
from samtune.commands.pictures import HeldOut
from samtune.commands.predict import ObjectPrompt, overlay, read_points
from samtune.commands.search import Progress
from samtune.commands.settings import TuneSettings
from samtune.commands.texts import worse_text
from samtune.commands.tuned import load_tuned, save_tuned
from samtune.common.atomic import alone
from samtune.data import registry
from samtune.data.folder import FolderDataset
from samtune.data.registry_entry import Description
from samtune.evaluation import EvaluationConfig, evaluate, predict_with
from samtune.methods import METHODS, Lora
from samtune.sam.build import BACKBONES, _build
from samtune.sam.checkpoints import load_sam, weights_hash
from samtune.study.profile import load_profile
from samtune.study.runner import run_cells
from small_sam import SIZES, official_twin, small_sam

COMMANDS = ("tune", "predict", "export", "data list", "data info", "data download", "data check", "profiles",
            "results", "attack", "report")  # fmt: skip


@pytest.fixture(autouse=True)
def a_small_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backbone is the tiny SAM."""
    use_tiny_sam(monkeypatch)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures on which LoRA has been tuned, with the checkpoint in out/."""
    folder = tmp_path_factory.mktemp("tuned")
    write_pictures(folder)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_sam(patch)
        status, _, error = tune(folder, "--learning-rate", "0.05")
    assert status == 0, error
    return folder


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_explains_itself(command: str) -> None:
    status, text, _ = run(*command.split(), "--help")
    assert status == 0
    assert all(len(line) <= 100 for line in text.splitlines())
    options = re.findall(r"^  --([a-z-]+)(.*(?:\n {20,}.*)*)", text, re.MULTILINE)
    assert all(len(words.split()) > 1 for name, words in options), text


def test_version_help_and_unknown_commands() -> None:
    assert run("--version")[:2] == (0, f"samtune {samtune.__version__}\n")
    assert "tune " in run()[1] + run()[2]
    status, _, error = run("tun")
    assert status == 2 and "tun" in error


def test_the_command_starts_without_loading_what_only_the_work_needs() -> None:
    script = "import sys, samtune.commands.cli; print({'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---------------------------------------------------------------- tune


def test_tuning_prints_and_writes_what_it_measured(tuned: Path) -> None:
    status, text, _ = tune(tuned, "--learning-rate", "0.05")  # done already: measures again, nothing else
    assert status == 0
    assert "5 pictures: 4 to tune on, 1 held out" in text and "already tuned, only measured again" in text
    table = pd.read_csv(tuned / "out" / "metrics.csv")
    assert list(table)[:4] == ["stage", "prompt", "image", "object"] and {"iou", "boundary_iou", "dice"} < set(table)
    assert len(table) == 4  # a picture, two prompts, before and after
    means = table.groupby(["prompt", "stage"])["iou"].mean()
    for prompt in ("box", "point10"):
        before, after = means[prompt, "zero_shot"], means[prompt, "tuned"]
        row = next(line for line in text.splitlines() if line.startswith(prompt))
        assert row.split() == [prompt, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"]
    is_worse = any(means[prompt, "zero_shot"] - means[prompt, "tuned"] >= 0.0005 for prompt in ("box", "point10"))
    comment = " (worse, see above)" if is_worse else ""
    assert f"tuned model{comment}: {tuned / 'out' / 'tuned.safetensors'}" in text
    assert ("tuning has made it WORSE" in text) == is_worse
    left = {path.name for path in (tuned / "out").iterdir()}
    assert left == {"metrics.csv", "settings.json", "tuned.safetensors"}


def test_look_alikes_across_the_held_out_part_and_tokens_without_adversarial_pictures_are_told(tmp_path: Path) -> None:
    images, masks = write_pictures(tmp_path)
    for folder in (images, masks):
        for number in range(5):  # each a second time: whichever is held out, its twin is tuned on
            shutil.copy(folder / f"{number}.png", folder / f"again{number}.png")
    status, text, error = tune(tmp_path, "--learning-rate", "0.05", "--method", "asam")
    assert status == 0, error
    assert re.search(r"warning: \d pairs? of a picture to tune on and a held-out one look alike, such as", text + error)
    assert "asam: its tokens are tuned on these pictures as they are (samtune attack makes adversarial ones)" in text


def test_files_of_other_programs_in_the_folder_are_left_alone(tuned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(tuned, folder)
    (folder / "out" / "cache").mkdir()
    (folder / "out" / "cache" / "thesis.txt").write_text("years of work")
    assert tune(folder, "--learning-rate", "0.05")[0] == 0
    assert (folder / "out" / "cache" / "thesis.txt").read_text() == "years of work"
    for content in ('{"editor": "mine"}', "[1, 2]", "no json"):
        (folder / "out" / "settings.json").write_text(content)
        status, _, error = tune(folder, "--learning-rate", "0.05")
        assert status == 2 and "settings.json is not a file of samtune tune: give another --out" in error
        assert (folder / "out" / "settings.json").read_text() == content
    (folder / "out" / "settings.json").unlink()
    status, _, error = tune(folder, "--learning-rate", "0.05")
    assert status == 2 and "metrics.csv is of no run of samtune tune: give another --out" in error


def test_mask_prompts_are_as_fine_as_the_models_masks(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("samtune.commands.tune.evaluate", lambda predict, data, config, **rest: asked.append(config))
    with pytest.raises(TypeError):  # nothing is measured
        tune(tuned, "--learning-rate", "0.05")
    assert [config.mask_size for config in asked] == [tiny_sam().mask_size]


def test_a_checkpoint_holds_the_trained_parameters_and_says_what_they_belong_to(tuned: Path) -> None:
    path = tuned / "out" / "tuned.safetensors"
    with safe_open(path, "pt") as file:
        about = file.metadata()
    wanted = {"method": "lora", "backbone": "nano", "preprocess": "pad", "prompts": "box,point10", "options": "{}"}
    assert wanted.items() <= about.items()
    method = load_tuned(path).method
    state = load_file(path)
    assert sum(value.numel() for value in state.values()) == method.count_trainable() < 20_000
    fresh = Lora(tiny_sam())
    assert fresh.trainable_state().keys() == state.keys()
    moved = [name for name in state if not torch.equal(state[name], fresh.trainable_state()[name])]
    assert len(moved) > len(state) / 2


def test_tuning_the_decoder_learns_the_discs(tmp_path: Path) -> None:
    write_pictures(tmp_path, 10)
    options = ("--method", "decoder_tuning", "--learning-rate", "0.02", "--prompt", "box", "--train-images", "160")
    status, text, _ = tune(tmp_path, *options, "--batch-size", "8", "--preprocess", "stretch")
    scores = pd.read_csv(tmp_path / "out" / "metrics.csv").groupby("stage")["iou"].mean()
    assert status == 0 and scores["tuned"] > max(0.4, scores["zero_shot"] + 0.2), text


def test_epochs_method_options_and_instances(tmp_path: Path) -> None:
    _, masks = write_pictures(tmp_path)
    for seed in range(5):  # two objects a picture: the disc, and its mirror image
        (masks / f"{seed}.png").unlink()
        (masks / str(seed)).mkdir()
        for number, mask in enumerate((disc(seed), disc(seed)[:, ::-1])):
            Image.fromarray(mask.astype(np.uint8) * 255).save(masks / str(seed) / f"{number}.png")
    options = ["--images", tmp_path / "images", "--masks", masks, "--out", tmp_path / "out", "--device", "cpu"]
    options += ["--option", "rank=2", "--option", "alpha=4", "--epochs", "1.5", "--batch-size", "2"]
    status, text, error = run("tune", *options, "--prompt", "point1", "--target", "instances")
    assert status == 0, error
    assert "3 batches of 2" in text  # 1.5 times 4 pictures
    method = load_tuned(tmp_path / "out").method
    assert method.count_trainable() == Lora(tiny_sam(), rank=2).count_trainable()
    assert len(pd.read_csv(tmp_path / "out" / "metrics.csv")) == 4  # two objects, before and after


def test_a_method_without_prompts_is_tuned_and_used_without_any(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    status, text, error = tune(tmp_path, "--method", "sam_sp", "--train-images", "4", "--precision", "fp32")
    assert status == 0 and "predict --checkpoint" in text and "--boxes" not in text, error
    table = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert set(table["prompt"]) == {"none"} and len(table) == 2  # the last pass alone, before and after
    method = load_tuned(tmp_path / "out").method
    data = HeldOut(FolderDataset(tmp_path / "images", tmp_path / "masks", split="train", name="pictures"))
    config = EvaluationConfig("val", prompt="none", preprocess="pad")
    found, _ = evaluate(predict_with(method, config), data, config, progress=False)
    final = found[found["output"] == "final"]["iou"].item()
    assert table[table["stage"] == "tuned"]["iou"].item() == pytest.approx(final, abs=1e-5)
    common = ("--checkpoint", tmp_path / "out", "--out", tmp_path)
    predict = ("predict", *common, "--images", tmp_path / "images", "--device", "cpu")
    status, _, error = run(*predict)
    assert status == 0 and len(list((tmp_path / "predicted_masks").glob("*.png"))) == 5, error
    status, _, error = run(*predict, "--box", "5,5,40,30")
    assert status == 2 and error.startswith("samtune: sam_sp takes no prompt: leave --boxes")
    status, _, error = run("export", *common[:2], "--out", tmp_path / "sam.safetensors")
    assert status == 2 and "sam.safetensors: SAM's own format is a .pth file" in error
    status, text, error = run("export", *common[:2], "--out", tmp_path / "sam.pth")
    assert status == 0 and "note: it gives the first, unprompted pass" in text, error
    assert f"pads and wants a prompt; on {tmp_path / 'out'} it does as in tuning" in text


QUICK_SEARCH = ("--train-images", "64", "--prompt", "box")  # 32 steps of 2, so that each rate is tried for 8


def test_the_learning_rate_is_searched_and_a_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path, 6)
    status, text, error = tune(tmp_path, *QUICK_SEARCH)
    assert status == 0 and "--learning-rate skips that): 4 rates for 8 steps each on 4 pictures\n" in text, error
    chosen, *tried = re.search(r"learning rate (\S+): it had the lowest loss after 8 steps \((.*)\)", text).groups()
    losses = {rate: float(loss) for rate, loss in (one.split() for one in tried[0].split(", "))}
    assert list(losses) == ["0.001", "0.003", "0.01", "0.03"] and losses[chosen] == min(losses.values())
    assert re.search(rf"32 batches of 2, learning rate {chosen}, about [\d.]+ (s|min)\n", text)
    with safe_open(tmp_path / "out" / "tuned.safetensors", "pt") as file:
        assert file.metadata()["learning_rate"] == chosen and file.metadata()["images_seen"] == "64"
    expected = load_file(tmp_path / "out" / "tuned.safetensors")

    real, trainings = search.train, []

    def stopped_in_the_third(*arguments: object) -> object:
        trainings.append(arguments[2].learning_rate)
        if len(trainings) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(search, "train", stopped_in_the_third)
    assert tune(tmp_path, *QUICK_SEARCH, out="again")[0] == 130
    status, text, error = tune(tmp_path, *QUICK_SEARCH, out="again")
    assert status == 0 and trainings == [0.001, 0.003, 0.01, 0.01, 0.03], error
    found = load_file(tmp_path / "again" / "tuned.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not (tmp_path / "again" / "search.safetensors").exists()
    short = tune(tmp_path, out="short")[1]
    assert "too few pictures or steps to search a learning rate: using the method's own, 0.001" in short


def test_the_length_fits_the_searchs_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best rate goes on from where it was, twice as long each time; the tuning is as long as was best."""
    write_pictures(tmp_path, 6)
    for name, value in {"search.TRIAL": 2, "search.FEWEST_STEPS": 2, "search.LONGEST": 16,
                        "settings.FEWEST_IMAGES": 4, "settings.EPOCHS": 1}.items():  # fmt: skip
        monkeypatch.setattr(f"samtune.commands.{name}", value)
    curve = iter([0.5, 0.1, 0.2, 0.6, 0.55])  # zero-shot, then after 2, 4, 8 and 16 steps
    real, measured = search.mean_iou_by_prompt, []

    def by_the_curve(table: pd.DataFrame) -> dict[str, float]:
        if set(table["stage"]) != {"search"}:
            return real(table)
        measured.append(table)
        return {"box": next(curve)}

    monkeypatch.setattr(search, "mean_iou_by_prompt", by_the_curve)
    quick = ("--images", tmp_path / "images", "--masks", tmp_path / "masks", "--batch-size", "2", "--prompt", "box")
    status, text, error = run("tune", *quick, "--out", tmp_path / "out", "--device", "cpu", "--precision", "fp32")
    assert status == 0 and len(measured) == 5, error
    assert "held out for the search, by steps: 0 0.500, 2 0.100, 4 0.200, 8 0.600, 16 0.550; the search took" in text
    assert "8 batches of 2, learning rate" in text


def test_a_search_stops_when_it_brings_no_more() -> None:
    def progress(*curve: tuple[float, float]) -> Progress:
        steps = [0, 25, 50, 100, 200]
        return Progress({}, {str(step): {"box": a, "none": b} for step, (a, b) in zip(steps, curve, strict=False)})

    start = (0.3, 0.3)
    assert progress(start, (0.1, 0.1)).rises() and progress(start, (0.4, 0.4), (0.3, 0.3)).rises()
    assert not progress(start, (0.4, 0.4), (0.5, 0.5), (0.505, 0.505)).rises()
    assert progress(start, (0.4, 0.4), (0.5, 0.5), (0.52, 0.52)).rises()
    assert progress(start, (0.4, 0.4), (0.8, 0.29), (0.8, 0.29)).rises()  # one prompt is still worse than untuned
    assert progress(start, (0.31, 0.31), (0.9, 0.2), (0.4, 0.4)).best() == 100


def test_a_result_below_zero_shot_is_said_in_one_line(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = iter([{"box": 0.5, "point10": 0.4}, {"box": 0.45, "point10": 0.6}])
    monkeypatch.setattr("samtune.commands.tune.mean_iou_by_prompt", lambda table: next(worse))
    status, text, _ = tune(tuned, "--learning-rate", "0.05")
    assert status == 0 and "tuned model (worse, see above): " in text
    assert "tuning has made it WORSE than SAM untuned, with box by 0.050: try to leave --learning-rate out" in text
    scores = pd.DataFrame({"zero_shot": [0.3, 0.2], "tuned": [0.2, 0.1]}, ["box", "none"])
    said = [worse_text(scores, TuneSettings(epochs=epochs)) for epochs in (3, None)]
    assert "with box by 0.100, none by 0.100: try to leave --epochs and --train-images out" in said[0]
    assert "try more pictures, or a method other than lora" in said[1]
    assert worse_text(scores[["tuned", "zero_shot"]].set_axis(["zero_shot", "tuned"], axis=1), TuneSettings()) == ""


def test_another_run_in_the_same_folder_is_refused(tuned: Path) -> None:
    before = (tuned / "out" / "tuned.safetensors").read_bytes()
    status, _, error = tune(tuned, "--learning-rate", "0.01", "--seed", "3")
    assert status == 2 and error.startswith("samtune: ") and error.count("\n") == 1
    assert "learning_rate 0.05, now 0.01; seed 0, now 3" in error and "give another folder" in error
    assert (tuned / "out" / "tuned.safetensors").read_bytes() == before


def test_tuning_into_a_folder_that_another_process_tunes_into(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    with alone(tmp_path / "out", "samtune tune"):
        status, _, error = tune(tmp_path)
    assert status == 2 and "another samtune tune is writing to" in error
    assert tune(tmp_path)[0] == 0


def test_the_folder_to_write_to_may_not_be_among_the_masks(tmp_path: Path) -> None:
    _, masks = write_pictures(tmp_path)
    status, _, error = tune(tmp_path, out="masks/tuned")
    assert status == 2 and "is inside the folder of masks" in error and not (masks / "tuned").exists()


def test_masks_named_as_their_pictures_and_a_suffix(tmp_path: Path) -> None:
    images, masks = write_pictures(tmp_path)
    for path in list(masks.iterdir()):
        path.rename(masks / f"{path.stem}_mask.png")
    status, _, error = tune(tmp_path)
    assert status == 2 and "is 0_mask.png its mask? then set --mask-suffix _mask" in error
    assert tune(tmp_path, "--mask-suffix", "_mask")[0] == 0
    for path in masks.iterdir():  # the masks beside the pictures
        shutil.copy(path, images)
    one = ("tune", "--images", images, "--masks", images, *QUICK)
    assert run(*one, "--out", tmp_path / "one", "--mask-suffix", "_mask")[0] == 0
    status, _, error = run(*one, "--out", tmp_path / "none")
    assert status == 2 and "the same folder" in error


def test_a_run_of_an_earlier_version_without_a_setting_goes_on(tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned, tmp_path / "earlier")
    path = tmp_path / "earlier" / "out" / "settings.json"
    settings = json.loads(path.read_text())
    assert settings.pop("mask_suffix") == ""
    path.write_text(json.dumps(settings))
    status, text, error = tune(tmp_path / "earlier", "--learning-rate", "0.05")
    assert status == 0 and "already tuned, only measured again" in text, error


def test_masks_of_a_coco_file(tmp_path: Path) -> None:
    images, _ = write_pictures(tmp_path)
    corners = [10, 10, 30, 10, 30, 25, 10, 25]
    listing = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(5)],
        "categories": [{"id": 1, "name": "plate"}],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "segmentation": [corners]} for n in range(5)],
    }
    file = tmp_path / "coco.json"
    common = ("tune", *QUICK, "--images", images, "--masks", file, "--target", "instances")

    def written(out: str, *options: str) -> tuple[int, str, str]:
        file.write_text(json.dumps(listing))
        return run(*common, "--out", tmp_path / out, *options)

    assert written("whole")[0] == 0
    table = pd.read_csv(tmp_path / "whole" / "metrics.csv")
    assert set(table["object_class"]) == {"plate"} and set(table["image"].astype(str)) < set("01234")
    listing["images"].append({"id": 5, "file_name": "5.png"})
    listing["annotations"].append({"id": 5, "image_id": 5, "category_id": 1, "segmentation": [corners]})
    listing["annotations"][0]["segmentation"] = [[1, 2, 3]]
    status, _, error = written("bad")
    assert status == 2 and "lists an image that is not there" in error and str(images / "5.png") in error
    status, _, error = written("skipped", "--skip-bad")
    assert status == 0 and "left out, 2 bad files" in error and "annotation 0 cannot be read" in error
    for number in range(5):  # folders of equal names
        (images / f"part{number}" / "img").mkdir(parents=True)
        shutil.copy(images / f"{number}.png", images / f"part{number}" / "img" / "a.png")
        listing["images"][number]["file_name"] = f"part{number}/img/a.png"
    status, _, error = written("folders", "--skip-bad")
    assert status == 0, error
    listing["annotations"] = []
    status, _, error = written("empty")
    assert status == 2 and f"no picture left of {images} with {file}: 6 without objects" in error
    status, _, error = written("coded", "--mask-coding", "index")
    assert status == 2 and "is a COCO file" in error


def test_cells_of_the_other_notebooks_are_run_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(notebook: str, profile: object) -> None:
        asked.append(notebook)
        if notebook == "10_spt":
            raise FloatingPointError("loss is nan at step 3\nmore")

    monkeypatch.setattr("samtune.study.notebooks.ask_for_cells", ask)
    monkeypatch.setattr(cli, "say_outlook", lambda profile: None)
    status, _, error = run("results", "--profile", "smoke", "--cells-only")
    assert status == 1 and error.splitlines()[-1] == "samtune: 10_spt: loss is nan at step 3"
    assert asked == list(load_profile("smoke").notebooks)


# ---------------------------------------------------------------- predict


def predicted(out: Path, name: str) -> np.ndarray:
    mask = np.asarray(Image.open(out / "predicted_masks" / name))
    assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255} and mask.shape == (HEIGHT, WIDTH)
    return mask > 0


def test_predict_by_boxes_of_a_csv(tuned: Path, tmp_path: Path) -> None:
    table = tmp_path / "boxes.csv"
    table.write_text("image, x0, y0, x1, y1\n0.png,5,5,40,30\n2,10,10,30,30\n2,20,5,50,35\n", encoding="utf-8-sig")
    common = ("predict", "--checkpoint", tuned / "out" / "tuned.safetensors", "--device", "cpu")
    status, text, error = run(*common, "--images", tuned / "images", "--boxes", table, "--out", tmp_path)
    assert status == 0, error
    assert "2 pictures, 3 masks" in text and "without a prompt, left out: 3 pictures (1, 3, 4)" in text
    single = predicted(tmp_path, "0.png")
    both = [predicted(tmp_path, f"2/{number}.png") for number in (1, 2)]
    assert not np.array_equal(*both)
    drawn = np.asarray(Image.open(tmp_path / "overlays" / "0.png"))
    assert max(drawn.shape[:2]) >= 512 and drawn.shape[2] == 3

    table.write_text("image,x0,y0,x1,y1\n0.png,5,5,40,5,30,5\n")  # 40.5 and 30.5 with decimal commas
    status, _, error = run(*common, "--images", tuned / "images", "--boxes", table, "--out", tmp_path / "comma")
    assert status == 2 and "boxes.csv line 2: 7 cells under 5 columns; a decimal comma? write 20.5" in error

    one = tmp_path / "one"  # the same box from the command line, on one file
    run(*common, "--images", tuned / "images" / "0.png", "--box", "5,5,40,30", "--out", one)
    assert np.array_equal(predicted(one, "0.png"), single)
    if single.any() and all(mask.any() for mask in both):  # what comes out can go in
        (tmp_path / "some").mkdir()
        for name in ("0.png", "2.png"):
            (tmp_path / "some" / name).write_bytes((tuned / "images" / name).read_bytes())
        data = FolderDataset(tmp_path / "some", tmp_path / "predicted_masks", split="test")
        assert np.array_equal(data.load("2").masks, both)


def test_predict_again_makes_only_what_is_not_there(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    draw = predict.overlay
    monkeypatch.setattr(predict, "overlay", lambda image, masks, objects: made.append(1) or draw(image, masks, objects))
    common = ("predict", "--checkpoint", tuned / "out", "--images", tuned / "images", "--out", tmp_path)
    common = (*common, "--device", "cpu")
    box = ("--box", "5,5,40,30")
    assert run(*common, *box)[0] == 0 and len(made) == 5
    kept = predicted(tmp_path, "3.png").copy()
    Image.open(tmp_path / "overlays" / "3.png").load()  # the text in it does not spoil it
    (tmp_path / "overlays" / "1.png").unlink()  # as after a break
    (tmp_path / "predicted_masks" / "2.png").unlink()
    status, text, _ = run(*common, *box)
    assert status == 0 and len(made) == 7 and "5 pictures, 5 masks (3 done before, with the same model" in text
    assert np.array_equal(predicted(tmp_path, "3.png"), kept)
    assert run(*common, "--box", "0,0,20,20")[0] == 0 and len(made) == 12  # other prompts
    assert run(*common, "--box", "0,0,20,20", "--box", "5,5,40,30")[0] == 0 and len(made) == 17
    assert not (tmp_path / "predicted_masks" / "3.png").exists()
    assert run(*common, *box)[0] == 0 and len(made) == 22 and not (tmp_path / "predicted_masks" / "3").exists()


def test_predict_tells_of_what_it_cannot_read_after_the_others(tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned / "images", tmp_path / "images")
    table = tmp_path / "boxes.csv"
    table.write_text("image,x0,y0,x1,y1\n" + "".join(f"{name}.png,5,5,40,30\n" for name in "01"))
    common = ("predict", "--checkpoint", tuned / "out", "--images", tmp_path / "images", "--out", tmp_path / "out")
    assert run(*common, "--device", "cpu", "--boxes", table)[0] == 0
    (tmp_path / "images" / "1.png").write_bytes(b"not a picture any more")
    status, text, error = run(*common, "--device", "cpu", "--box", "5,5,40,30")
    assert status == 2 and "1.png" in error and "Traceback" not in error


def test_predict_by_points_and_by_a_box_with_clicks(tuned: Path, tmp_path: Path) -> None:
    table = tmp_path / "points.csv"
    table.write_text("image,x,y,label,object\n0.png,20,20,1,a\n0.png,3,3,0,a\n0.png,30,20,,b\n1.png,20,20,1,a\n")
    found = read_points(table)
    assert [one.clicks for one in found["0.png"]] == [[(20, 20, 1), (3, 3, 0)], [(30, 20, 1)]]
    common = ("predict", "--checkpoint", tuned / "out", "--images", tuned / "images", "--device", "cpu")
    status, text, error = run(*common, "--points", table, "--out", tmp_path / "csv")
    assert status == 0 and "2 pictures, 3 masks" in text, error
    run(*common, "--point", "20,20", "--out", tmp_path / "flag")
    assert np.array_equal(predicted(tmp_path / "flag", "1.png"), predicted(tmp_path / "csv", "1.png"))
    run(*common, "--point", "30,20", "--out", tmp_path / "alone")  # beside an object of two clicks the same
    assert np.array_equal(predicted(tmp_path / "alone", "0.png"), predicted(tmp_path / "csv", "0/2.png"))
    table.write_text("image,x,y,object\n0.png,30,20,7\n0.png,20,20,3\n")  # their own numbers, in any order
    run(*common, "--points", table, "--out", tmp_path / "numbers")
    assert np.array_equal(predicted(tmp_path / "numbers", "0/7.png"), predicted(tmp_path / "alone", "0.png"))
    both = ("--box", "5,5,40,30", "--point", "20,20", "--point", "3,3,0", "--out", tmp_path / "two")
    status, text, _ = run(*common, *both)
    assert status == 0 and "5 pictures, 5 masks" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no prompt: give --boxes"),
        (("--box", "1,2,3"), "--box 1,2,3: expected x0,y0,x1,y1"),
        (("--box", "30,5,10,20"), "is not x0,y0,x1,y1 with x0 <= x1"),
        (("--box", "100,5,120,20"), "lies outside .*0.png, 56x40 pixels"),
        (("--point", "20,nan"), "--point 20,nan: expected x,y or x,y,label in pixels"),
        (("--box", "1,2,inf,20"), "--box 1,2,inf,20: expected x0,y0,x1,y1 in pixels"),
        (("--point", "20,20,2"), r"label is 2, expected 1 \(the object\) or 0"),
        (("--point", "60,20"), "point 60,20 lies outside .*0.png, 56x40 pixels"),
        (("--box", "1,1,5,5", "--boxes", "TABLE"), "not several of them"),
        (("--boxes", "TABLE"), "line 2: picture '11.png' is not in .*; nearest: 1.png"),
        (("--points", "TABLE"), "no column x: expected the header image,x,y, found image,x0,y0,x1,y1"),
        (("--points", "missing.csv"), "no such file: missing.csv"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_meant_are_named(tuned: Path, tmp_path: Path, options: tuple, message: str) -> None:
    table = tmp_path / "boxes.csv"
    table.write_text("image,x0,y0,x1,y1\n11.png,5,5,40,30\n")
    options = [table if one == "TABLE" else one for one in options]
    common = ("predict", "--checkpoint", tuned / "out", "--images", tuned / "images", "--out", tmp_path / "out")
    status, _, error = run(*common, *options, "--device", "cpu")
    assert status == 2 and error.count("\n") == 1 and re.search(f"^samtune: .*{message}", error), error
    assert not (tmp_path / "out").exists()


def test_a_bad_box_and_a_file_in_the_folders_place_are_found_before_the_work(tuned: Path, tmp_path: Path) -> None:
    table, out = tmp_path / "boxes.csv", tmp_path / "out"
    table.write_text("image,x0,y0,x1,y1\n0.png,5,5,40,30\n1.png,100,5,120,30\n")
    ask = ("predict", "--checkpoint", tuned / "out", "--images", tuned / "images", "--boxes", table, "--out", out)
    status, _, error = run(*ask)
    assert status == 2 and f"{table} line 3: box (100.0, 5.0, 120.0, 30.0) lies outside" in error
    assert not out.exists()
    out.write_text("a file")
    table.write_text("image,x0,y0,x1,y1\n0.png,5,5,40,30\n")
    message = f"samtune: {out} is a file, and a folder is to be written there: give another name\n"
    for status, _, error in (run(*ask), tune(tuned, out=out)):
        assert status == 2 and error == message


def test_masks_of_an_earlier_run_are_replaced(tuned: Path, tmp_path: Path) -> None:
    common = ("predict", "--checkpoint", tuned / "out", "--out", tmp_path, "--device", "cpu")
    boxes = [("--box", f"{5 + number},5,40,30") for number in range(3)]
    masks = tmp_path / "predicted_masks"

    def files(*options: object) -> set[str]:
        status, _, error = run(*common, *options)
        assert status == 0, error
        return {str(path.relative_to(masks)) for path in masks.rglob("*")}

    one = ("--images", tuned / "images" / "1.png")
    assert files(*one, *boxes[0], *boxes[1], *boxes[2]) == {"1", "1/1.png", "1/2.png", "1/3.png"}
    assert files(*one, *boxes[0], *boxes[1]) == {"1", "1/1.png", "1/2.png"}
    assert files(*one, *boxes[0]) == {"1.png"}
    assert files(*one, *boxes[0], *boxes[1]) == {"1", "1/1.png", "1/2.png"}
    (masks / "1" / "notes.txt").write_text("the user's own")
    assert files("--images", tuned / "images" / "2.png", *boxes[0]) == {
        "1",
        "1/1.png",
        "1/2.png",
        "1/notes.txt",
        "2.png",
    }
    assert files(*one, *boxes[0]) == {"1", "1/notes.txt", "1.png", "2.png"}
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\n1.png,5,5,40,30\n")
    status, text, _ = run(*common, "--images", tuned / "images", "--boxes", tmp_path / "boxes.csv")
    assert status == 0 and f"{tmp_path} still has an earlier run's masks of 1 picture of these (2)" in text


@pytest.mark.parametrize("name", ["sam.pth", "sam.pt"])
def test_predict_takes_what_export_wrote(
    tuned: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONES, "small", partial(_build, **SIZES))  # told by its width
    assert run("export", "--checkpoint", tuned / "out", "--out", tmp_path / name)[0] == 0
    ask = ("--images", tuned / "images" / "1.png", "--box", "5,5,40,30", "--device", "cpu", "--precision", "fp32")
    status, text, error = run("predict", "--checkpoint", tmp_path / name, *ask, "--out", tmp_path / "whole")
    assert status == 0 and f"{tmp_path / name} is a whole SAM, not what samtune tune wrote: used as it is" in text, (
        error
    )
    run("predict", "--checkpoint", tuned / "out", *ask, "--out", tmp_path / "tuned")
    found = predicted(tmp_path / "whole", "1.png")
    assert np.array_equal(found, predicted(tmp_path / "tuned", "1.png"))
    with monkeypatch.context() as patch:
        use_tiny_sam(patch, load_sam)
        status, _, error = tune(tuned, "--backbone", tmp_path / name, "--train-images", "2", out=f"on {name}")
        assert status == 0, error
        (tmp_path / name).rename(tmp_path / f"moved {name}")
        ask_tuned = ("predict", "--checkpoint", tuned / f"on {name}", *ask, "--out", tmp_path / "moved")
        status, _, error = run(*ask_tuned)
        assert status == 2 and f"was tuned on {tmp_path / name}, which is no longer there: name its file by" in error
        assert run(*ask_tuned, "--backbone", tmp_path / f"moved {name}")[0] == 0
        status, _, error = tune(tuned, "--backbone", tuned / "out" / "tuned.safetensors", out="on tuned")
        assert status == 2 and "holds no image encoder" in error and "has to be exported first" in error
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    status, _, error = run("predict", "--checkpoint", tmp_path / "other.pth", *ask, "--out", tmp_path)
    assert status == 2 and "holds neither a whole SAM nor what SPT's authors released" in error


def test_an_overlay_tints_the_mask_and_leaves_the_rest() -> None:
    image = np.full((600, 800, 3), 100, np.uint8)
    mask = np.zeros((600, 800), bool)
    mask[200:400, 300:500] = True
    assert overlay(image, mask[None], [ObjectPrompt((-1e30, 5, 1e30, 50))]).shape == image.shape
    drawn = overlay(image, mask[None], [ObjectPrompt((300, 200, 499, 399), [(50.0, 50.0, 0.0)])])
    orange = np.array(predict.COLOURS[0])
    assert np.array_equal(drawn[300, 400], np.round(0.6 * 100 + 0.4 * orange))
    assert np.array_equal(drawn[500, 100], [100, 100, 100]) and np.array_equal(drawn[50, 50], predict.CLICK[0])
    assert np.array_equal(drawn[200, 400], orange)  # its outline
    assert np.array_equal(image, np.full_like(image, 100))  # the picture itself is not drawn on


# ---------------------------------------------------------------- export


def test_plain_segment_anything_loads_the_export_and_predicts_the_same(tuned: Path, tmp_path: Path) -> None:
    status, text, error = run("export", "--checkpoint", tuned / "out", "--out", tmp_path / "sam.pth")
    assert status == 0 and "segment_anything has no builder for nano's sizes" in text, error
    status, _, again = run("export", "--checkpoint", tuned / "out", "--out", tmp_path / "sam.pth")
    assert status == 2 and "sam.pth is there already: give another name, or remove it" in again
    sam = official_twin(small_sam(seed=1))  # of other weights
    sam.load_state_dict(torch.load(tmp_path / "sam.pth", weights_only=True))  # strict
    predictor = segment_anything.SamPredictor(sam)
    image = np.asarray(Image.open(tuned / "images" / "1.png"))
    predictor.set_image(image)
    masks, _, low = predictor.predict(box=np.array([5, 5, 40, 30]), multimask_output=False)
    common = ("--images", tuned / "images" / "1.png", "--box", "5,5,40,30", "--out", tmp_path, "--device", "cpu")
    run("predict", "--checkpoint", tuned / "out", "--precision", "fp32", *common)
    assert np.abs(low).max() > 0.01
    assert np.array_equal(predicted(tmp_path, "1.png"), masks[0])


def test_a_method_that_is_more_than_sam_says_that_it_has_no_merged_form(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unmergeable(Lora):
        def merged(self) -> None:
            return None

    monkeypatch.setitem(METHODS, "lora", Unmergeable)
    status, _, error = run("export", "--checkpoint", tuned / "out", "--out", tmp_path / "sam.pth")
    assert status == 2 and "lora has no merged form" in error and not (tmp_path / "sam.pth").exists()


def test_an_encoder_that_segment_anything_lacks_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_sam(monkeypatch, load_sam)  # the real ones again
    sam = load_sam("nano_mobile")
    path, settings = tmp_path / "tuned.safetensors", TuneSettings("decoder_tuning", "nano_mobile")
    save_tuned(settings.build(sam), path, settings, weights_hash(sam), {})
    status, _, error = run("export", "--checkpoint", path, "--out", tmp_path / "sam.pth")
    assert status == 2 and "no class for the encoder of nano_mobile" in error and not (tmp_path / "sam.pth").exists()


# ---------------------------------------------------------------- data


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root whose one set, `discs`, is there."""
    write_pictures(tmp_path / "discs")

    def factory(folder: Path) -> FolderDataset:
        return FolderDataset(folder / "images", folder / "masks", name="discs")

    described = Description(
        "discs", factory, "Bright discs", "industrial", "CC0", "nobody", "ask", "60/20/20", layout=("images/*.png",)
    )
    monkeypatch.setattr(registry, "DATASETS", {"discs": described})
    monkeypatch.setenv("SAMTUNE_DATA", str(tmp_path))
    return tmp_path


def test_data_list_info_and_check(registered: Path) -> None:
    status, text, _ = run("data", "list")
    assert status == 0 and re.search(r"discs +train 3, val 1, test 1 +Bright discs", text)
    assert str(registered) in text
    status, text, _ = run("data", "info", "discs")
    assert status == 0 and "licence: CC0" in text and "3 train, 1 val, 1 test" in text
    status, text, _ = run("data", "check", "discs")
    assert status == 0 and "every sample opens" in text
    path = registered / "discs" / "images" / "0.png"
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()
    path.with_suffix(".jpg").write_bytes(path.with_suffix(".jpg").read_bytes()[:-200])
    status, text, _ = run("data", "check", "discs")
    assert status == 1 and f"problem: cannot read image {path.with_suffix('.jpg')}" in text


def test_data_download_of_what_is_here_or_has_to_be_asked_for(registered: Path) -> None:
    assert run("data", "download", "discs")[:2] == (0, f"discs is already in {registered / 'discs'}\n")
    (registered / "discs").rename(registered / "elsewhere")
    status, _, error = run("data", "download", "discs")
    assert status == 2 and error.startswith("samtune: To get discs by hand: ask") and str(registered / "discs") in error


# ---------------------------------------------------------------- the study


def test_profiles_are_listed_from_small_to_large() -> None:
    status, text, _ = run("profiles")
    names = re.findall(r"^(\w+) ", text, re.MULTILINE)
    assert status == 0 and names[:2] == ["smoke", "quick"] and set(names[2:]) == {"cpu", "gpu", "paper"}


def test_report_is_made_of_records_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path))
    status, _, error = run("report", "--profile", "quick")
    assert status == 2 and f"no records in {tmp_path / 'quick' / 'records'}" in error
    cells = fake_cells(datasets=("neu-seg",), seeds=(0, 1))
    run_cells(cells, tmp_path / "quick", fake_execute, say=lambda line: None)
    status, text, _ = run("report", "--profile", "quick")
    page = tmp_path / "quick" / "index.html"
    assert (status, text) == (0, f"report: {page}\n") and "LoRA" in page.read_text()
    assert (tmp_path / "quick" / "tables" / "baselines.csv").is_file()


@pytest.mark.parametrize("fails", [False, True])
def test_results_ends_with_the_report_even_when_a_notebook_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setenv("SAMTUNE_RESULTS", str(tmp_path))

    def run_profile(profile: str) -> None:
        run_cells(fake_cells(datasets=("neu-seg",), seeds=(0,)), profile, fake_execute, say=lambda line: None)
        if fails:
            raise notebooks.NotebookError("1 of 2 notebooks failed: why")

    monkeypatch.setattr(notebooks, "run_profile", run_profile)
    status, text, error = run("results", "--profile", "smoke")
    assert status == int(fails) and error == ("samtune: 1 of 2 notebooks failed: why\n" if fails else "")
    assert text.splitlines()[-1] == f"report: {tmp_path / 'smoke' / 'index.html'}"
    assert (tmp_path / "smoke" / "index.html").is_file()


def test_debug_shows_where_an_error_comes_from(tmp_path: Path) -> None:
    options = ("tune", "--images", tmp_path / "none", "--masks", tmp_path / "masks", "--out", tmp_path / "out")
    assert run(*options) == (2, "", f"samtune: no such folder: {tmp_path / 'none'}\n")
    for arguments in (("--debug", *options), (*options, "--debug")):
        status, _, error = run(*arguments)
        assert status == 2 and "Traceback" in error and "FolderDataset" in error
