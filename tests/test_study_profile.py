"""Profiles: all that ship are valid and say what DESIGN says; a mistake is one clear line."""

import pytest
import yaml

from samtune.common.errors import InputError
from samtune.common.paths import asset
from samtune.metrics import METRICS
from samtune.prompts import parse_kind
from samtune.report.claims import NOTEBOOKS
from samtune.study.profile import load_profile, profile_names


def test_all_that_ship_are_valid_and_as_designed():
    assert set(profile_names()) == {"smoke", "quick", "cpu", "gpu", "paper"}
    for name in profile_names():
        profile = load_profile(name)
        assert profile.name == name
        for prompt in profile.evaluation.prompts:
            parse_kind(prompt)
        evaluation = profile.evaluation
        assert {*evaluation.metrics, *evaluation.medical_metrics, *evaluation.camouflage_metrics} <= set(METRICS)
        notebooks = {*NOTEBOOKS.values(), "90_train_nano_models"}
        assert {*profile.datasets, *profile.notebooks} <= notebooks
        assert set(profile.notebooks) <= set(profile.datasets)
    smoke, quick, cpu, gpu, paper = (load_profile(name) for name in ("smoke", "quick", "cpu", "gpu", "paper"))
    assert (smoke.images, smoke.images / smoke.batch_size, smoke.evaluation.max_images) == (4, 2, 4)
    for offline in (smoke, quick):
        assert all(one.startswith("synthetic-") for sets in offline.datasets.values() for one in sets)
    assert (cpu.images, cpu.seeds, cpu.ablation_seeds, cpu.precision) == (3000, (0, 1, 2), (0,), "fp32")
    assert [one.backbone for one in (smoke, quick, cpu, gpu, paper)] == ["nano"] * 3 + ["vit_b"] * 2
    assert paper.other_backbones == ("vit_l", "vit_h")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imagez": 3}, "unknown key 'imagez'; known: images"),
        ({"evaluation": {"max_image": 3}}, "unknown key 'max_image'; known: max_images"),
        ({"notebooks": {"00_start_here": {"parameter": {}}}}, "unknown key 'parameter'; known: parameters"),
        ({"seeds": []}, r"seeds is \[\]: "),
        ({"seeds": [0.5]}, r"seeds.0 is 0.5: "),
        ({"images": "3000"}, r"images.* is '3000': input should be a valid integer"),
        ({"precision": "fp16"}, "precision is 'fp16': input should be 'auto', 'fp32' or 'bf16'"),
        ({"evaluation": {"metrics": ["dice"]}}, "iou must be among them: learning rates are chosen by it"),
        ({"learning_rates": ["1e-3"]}, r"learning_rates.0 is '1e-3': .* \(in YAML write 0.001\)"),
        ({"learning_rates": [-0.1]}, "learning_rates.0 is -0.1: input should be greater than 0"),
        ({"learning_rates": [float("nan")]}, "learning_rates.0 is nan: "),
        ({"name": "../x"}, "name is '../x': string should match pattern"),
        ({"generation": {"sets": []}}, r"generation.sets is \[\]"),
        ({"backbone": None}, "backbone is None: input should be a valid string"),
    ],
)
def test_mistakes_are_one_line_with_file_and_key(tmp_path, change, message):
    data = yaml.safe_load((asset("profiles") / "cpu.yaml").read_text())
    for name, value in change.items():
        data[name] = data[name] | value if name == "evaluation" else value
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=message) as caught:
        load_profile(str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_missing_keys_files_and_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine")
    with pytest.raises(InputError, match="backbone is missing"):
        load_profile(str(path))
    path.write_text("a: [")
    with pytest.raises(InputError, match=r"mine\.yaml: not YAML"):
        load_profile(str(path))
    path.write_text("- a")
    with pytest.raises(InputError, match="a profile is a mapping"):
        load_profile(str(path))
    with pytest.raises(InputError, match="no such profile: .*other.yaml"):
        load_profile("other.yaml")
    with pytest.raises(InputError, match="unknown profile 'cpy'; known: cpu"):
        load_profile("cpy")


def test_a_file_with_a_base_says_what_differs(tmp_path):
    path, gpu = tmp_path / "mine.yaml", load_profile("gpu")
    path.write_text("base: gpu\nname: mine\nseeds: [0]\ngeneration: {sets: [doors]}\nnotebooks: {30_asam: {}}\n")
    mine = load_profile(str(path))
    assert (mine.name, mine.seeds, list(mine.notebooks)) == ("mine", (0,), ["30_asam"])
    assert mine.generation == gpu.generation.model_copy(update={"sets": ("doors",)})
    assert (mine.backbone, mine.evaluation, mine.datasets) == (gpu.backbone, gpu.evaluation, gpu.datasets)
    path.write_text("base: gpu\nseeds: [0]\n")
    with pytest.raises(InputError, match="name is missing"):  # its results would be those of `gpu`
        load_profile(str(path))
    path.write_text("base: gpu\nname: cpu\n")
    with pytest.raises(InputError, match="name is 'cpu', as a profile's that ships"):
        load_profile(str(path))
    path.write_text("base: gpu\nname: mine\ndatasets: {10-spt: [doors]}\n")
    with pytest.raises(InputError, match="unknown notebook '10-spt'; known: 10_spt"):
        load_profile(str(path))
    path.write_text("base: gpo\nname: mine\n")
    with pytest.raises(InputError, match="unknown profile as a base 'gpo'; known: gpu"):
        load_profile(str(path))
