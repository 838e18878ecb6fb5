"""PraNet's protocol for polyps, which SAM-SP's table follows: one training set, five test sets.

Fan et al., "PraNet: Parallel Reverse Attention Network for Polyp Segmentation", MICCAI 2020: 900 images of Kvasir and
550 of CVC-ClinicDB train one model. It is tested on the rest of these two sets, and on three sets that it never saw.
The data set `polyps` is all of it; `polyps-kvasir` and so on are the five test sets, each alone.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from samtune.data.entries import Entry, EntryDataset, Pairing, binary_entry, first_layout, read_bright
from samtune.data.medical import sequence_of_frame
from samtune.data.registry_entry import Description

POLYPS, CLINIC = "polyps", "CVC-ClinicDB"
# Name in the registry -> folder of the test set, number of its pictures.
TEST_SETS = {
    "polyps-cvc-300": ("CVC-300", 60),
    "polyps-cvc-clinicdb": (CLINIC, 62),
    "polyps-kvasir": ("Kvasir", 100),
    "polyps-cvc-colondb": ("CVC-ColonDB", 380),
    "polyps-etis": ("ETIS-LaribPolypDB", 196),
}
TRAINING = tuple(  # the layouts of the training set
    (Pairing("train", f"TrainDataset/{images}", f"TrainDataset/{masks}"),)
    for images, masks in (("image", "mask"), ("images", "masks"))
)


def training_set(dataset: str) -> str:
    """The set whose training pictures a model that is measured on `dataset` has seen: its own, but for PraNet's test
    sets.
    """
    return POLYPS if dataset in TEST_SETS else dataset


def polyps(folder: Path) -> EntryDataset:
    """`TrainDataset/{image,mask}/<name>.png`; the five test sets together are the test split.

    A fifth of the training set is validation, stratified by origin. Frames of CVC-ClinicDB have their numbers as names,
    so that frames of one sequence stay together in that split, and count as one in intervals. Ids are
    `<origin>/<name>`.
    """
    entries = []
    for part, image, mask in first_layout(folder, TRAINING):
        entries.append(_entry(image, mask, CLINIC if image.stem.isdigit() else "Kvasir", part))
    for place, _ in TEST_SETS.values():
        entries += _test_entries(folder, place)
    return EntryDataset(POLYPS, entries)


def polyp_test_set(folder: Path, *, name: str) -> EntryDataset:
    """`TestDataset/<set>/{images,masks}/<name>.png`: one of the five test sets; it has no other split."""
    return EntryDataset(name, _test_entries(folder, TEST_SETS[name][0]))


def _test_entries(folder: Path, place: str) -> list[Entry]:
    pairs = first_layout(folder, [[Pairing("test", f"TestDataset/{place}/images", f"TestDataset/{place}/masks")]])
    return [_entry(image, mask, place, part) for part, image, mask in pairs]


def _entry(image: Path, mask: Path, origin: str, part: str) -> Entry:
    """Masks of Kvasir were JPEG once, and those of other sets were resized: their grey edges are cut at 127."""
    entry = binary_entry(f"{origin}/{image.stem}", image, mask, "polyp", part, read_bright)
    frame = origin == CLINIC and image.stem.isdigit()
    return replace(entry, stratum=origin, group=sequence_of_frame(int(image.stem)) if frame else "")


_CITATION = (
    "Fan, Ji, Zhou, Chen, Fu, Shen, Shao: PraNet: Parallel Reverse Attention Network for Polyp Segmentation. MICCAI "
    "2020; and the authors of the five sets"
)
_HOW_TO_GET = (
    "TrainDataset.zip and TestDataset.zip linked at https://github.com/DengPingFan/PraNet; unpack so that "
    "polyps/TrainDataset and polyps/TestDataset exist"
)


def _test_set(name: str, place: str, images: int) -> Description:
    return Description(
        name=name,
        factory=partial(polyp_test_set, name=name),
        title=f"{place}: polyps, test set of PraNet's protocol (train on `polyps`)",
        domain="medical",
        licence="research and education only",
        citation=_CITATION,
        how_to_get=_HOW_TO_GET,
        splits="test only"
        + ("" if place in (CLINIC, "Kvasir") else "; frames of one video count as independent pictures in intervals"),
        folder=POLYPS,
        layout=(f"**/TestDataset/{place}/images/*", f"**/TestDataset/{place}/masks/*"),
        images=images,
    )


DATASETS: dict[str, Description] = {
    POLYPS: Description(
        name=POLYPS,
        factory=polyps,
        title="Polyps by PraNet's protocol: 900 pictures of Kvasir and 550 of CVC-ClinicDB train, five test sets",
        domain="medical",
        licence="research and education only",
        citation=_CITATION,
        how_to_get=_HOW_TO_GET,
        splits="the protocol's 1,450 for training, a fifth of them for validation, and 798 for test; neighbouring "
        "frames of CVC-ClinicDB are near-duplicates and lie on both sides of the protocol's train and test parts",
        layout=("**/TrainDataset/*/*", *(f"**/TestDataset/{place}/images/*" for place, _ in TEST_SETS.values())),
        images=1450 + sum(images for _, images in TEST_SETS.values()),
    ),
} | {name: _test_set(name, *about) for name, about in TEST_SETS.items()}
