"""Industrial sets in their documented layouts: MVTec AD, BTAD, MPDD, VisA, KolektorSDD2, DAGM 2007, SPT's own.

As in SPT, an image has one mask with all its defects, and only images with a defect are listed. `defect_free=True`
lists the others instead (without masks), to measure false alarms.
"""

import csv
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from samtune.common.errors import InputError, unknown
from samtune.data.entries import (
    Entry,
    EntryDataset,
    binary_entry,
    content_root,
    pair,
    read_nonzero,
)
from samtune.data.files import by_name, folders, pictures, read_text, readable
from samtune.data.pixels import read_mask
from samtune.data.registry_entry import Description, LinkSource
from samtune.data.splits import SPLITS

VISA_PROTOCOLS = ("1cls", "2cls_highshot", "2cls_fewshot")


def path_id(image: Path, root: Path) -> str:
    """A readable id, unique in the set: the path from its root, without the suffix."""
    return readable(image.relative_to(root).with_suffix("").as_posix())


def choose(name: str, anomalous: list[Entry], free: list[Entry], defect_free: bool, **dropped: int) -> EntryDataset:
    """The data set of one of the two lists; the other one's length counts as dropped."""
    if defect_free:
        return EntryDataset(name, free, {"anomalous": len(anomalous), **dropped})
    return EntryDataset(name, anomalous, {"defect-free": len(free), **dropped})


def mvtec_style(folder: Path, *, name: str, good: str = "good", defect_free: bool = False) -> EntryDataset:
    """`<category>/test/<defect>/NNN.png`, `<category>/ground_truth/<defect>/NNN_mask.png`, `<category>/train/<good>/`.

    The official training part has no defects, so images with a defect (all in test) are split 60/20/20, stratified by
    category and defect. Masks may lack `_mask`, and may have another format than the image (BTAD: `.bmp` for `.png`).
    """
    root = content_root(folder, "*/test")
    anomalous, free = [], []
    for category in [child for child in folders(root) if (child / "test").is_dir()]:
        for kind in folders(category / "test"):
            if kind.name == good:
                free += [Entry(path_id(image, root), image, part="test") for image in pictures(kind)]
                continue
            label = f"{category.name}/{kind.name}"
            for image, mask in pair(pictures(kind), category / "ground_truth" / kind.name, ("_mask", "")):
                anomalous.append(binary_entry(path_id(image, root), image, mask, label))
        if (category / "train" / good).is_dir():
            free += [Entry(path_id(image, root), image, part="train") for image in pictures(category / "train" / good)]
    return choose(name, anomalous, free, defect_free)


def visa(folder: Path, *, protocol: str = "1cls", defect_free: bool = False) -> EntryDataset:
    """`<object>/Data/{Images,Masks}/Anomaly/NNN.{JPG,png}`, listed in `split_csv/<protocol>.csv`.

    "1cls" trains on normal images alone, so images with a defect (all in test) are split 60/20/20, stratified by
    object. The "2cls" protocols have them in both parts, which stay. The masks' values number the kind of defect, from
    1.
    """
    if protocol not in VISA_PROTOCOLS:
        raise unknown("VisA protocol", protocol, VISA_PROTOCOLS)
    root = content_root(folder, f"split_csv/{protocol}.csv")
    listing = root / "split_csv" / f"{protocol}.csv"
    anomalous, free = [], []
    for row in csv.DictReader(read_text(listing).splitlines()):
        if missing := [column for column in ("object", "split", "label", "image", "mask") if row.get(column) is None]:
            raise InputError(f"{listing}: a row lacks {missing[0]}: {row}")
        image = root / row["image"]
        if row["label"] == "normal":
            free.append(Entry(path_id(image, root), image, part=row["split"]))
            continue
        mask = root / row["mask"]
        if not mask.is_file():
            raise InputError(f"image {image} has no mask: expected {mask}")
        part = "" if protocol == "1cls" else row["split"]
        anomalous.append(binary_entry(path_id(image, root), image, mask, row["object"], part, read_nonzero))
    return choose("visa", anomalous, free, defect_free)


def kolektorsdd2(folder: Path, *, defect_free: bool = False) -> EntryDataset:
    """`{train,test}/NNNNN.png` with `NNNNN_GT.png`; official splits.

    Only the mask shows whether an image has a defect, so listing opens all 3,335 masks. The archive has a stray `10301
    (copy).png` with `10301_GT (copy).png`, which is left out.
    """
    root = content_root(folder, "train")
    pairs, copies = [], 0
    for part in ("train", "test"):
        images = [path for path in pictures(root / part) if "_GT" not in path.stem]
        numbered = [path for path in images if path.stem.isdigit()]
        copies += len(images) - len(numbered)
        pairs += [(part, image, mask) for image, mask in pair(numbered, root / part, ("_GT",))]
    anomalous, free = by_mask(pairs, root)
    return choose("kolektorsdd2", anomalous, free, defect_free, **{"stray copy": copies})


def by_mask(pairs: Iterable[tuple[str, Path, Path]], root: Path, label: str = "") -> tuple[list[Entry], list[Entry]]:
    """(part, image, mask) as entries with and without a defect. It opens the masks, not the images."""
    anomalous, free = [], []
    for part, image, mask in pairs:
        if read_mask(mask).any():
            anomalous.append(binary_entry(path_id(image, root), image, mask, label, part))
        else:
            free.append(Entry(path_id(image, root), image, part=part))
    return anomalous, free


def dagm2007(folder: Path, *, defect_free: bool = False) -> EntryDataset:
    """`Class1..10/{Train,Test}/NNNN.PNG`, `Label/NNNN_label.PNG` (coarse ellipses), for images with a defect only."""
    root = content_root(folder, "Class*/Train")
    anomalous, free = [], []
    for category in [child for child in folders(root) if child.name.startswith("Class")]:
        for part in ("Train", "Test"):
            images = {image.stem: image for image in pictures(category / part)}
            for mask in pictures(category / part / "Label"):
                image = images.pop(mask.stem.removesuffix("_label"), None)
                if image is None:
                    raise InputError(
                        f"mask {mask} has no image: expected {category / part / mask.name.replace('_label', '')}"
                    )
                anomalous.append(binary_entry(path_id(image, root), image, mask, category.name, part.lower()))
            free += [Entry(path_id(image, root), image, part=part.lower()) for image in images.values()]
    return choose("dagm2007", anomalous, free, defect_free)


def spt_folder(folder: Path, *, set: str = "", defect_free: bool = False) -> EntryDataset:
    """SPT's `<set>/test/<stem>.jpg` + `<stem>.png` (and `<set>/train/`, `<set>/val/`, where they exist).

    `set`: one of the folders; "": all, each as a class. Listing opens the masks, to leave out empty ones.
    """
    root = content_root(folder, "*/test")
    known = [child.name for child in folders(root) if (child / "test").is_dir()]
    if set and set not in known:
        raise unknown("set", set, known)
    anomalous, free = [], []
    for name in [set] if set else known:
        pairs = []
        for part in [part for part in SPLITS if (root / name / part).is_dir()]:
            images = [path for path in pictures(root / name / part) if path.suffix.lower() in (".jpg", ".jpeg")]
            masks = by_name(path for path in pictures(root / name / part) if path.suffix.lower() == ".png")
            for image in images:
                if (stem := readable(image.stem)) not in masks:
                    raise InputError(f"image {image} has no mask: expected {image.with_suffix('.png')}")
                pairs.append((part, image, masks[stem]))
        for total, found in zip((anomalous, free), by_mask(pairs, root, name), strict=True):
            total += found
    return choose("spt-folder", anomalous, free, defect_free)


_OWN_SPLIT = (
    "anomalous images (all in the official test part) split 60/20/20 by {}, seed 0; "
    "defect-free images keep the official parts"
)
_OFFICIAL = "official train/test; validation is a fifth of train"

DATASETS: dict[str, Description] = {
    entry.name: entry
    for entry in (
        Description(
            name="mvtec-ad",
            factory=partial(mvtec_style, name="mvtec-ad"),
            title="MVTec AD: 15 categories of objects and textures with 73 kinds of defect",
            domain="industrial",
            licence="CC BY-NC-SA 4.0",
            citation="Bergmann, Fauser, Sattlegger, Steger: MVTec AD. CVPR 2019; IJCV 129, 2021",
            how_to_get="https://www.mvtec.com/company/research/datasets/mvtec-ad (short form); unpack so that "
            "mvtec-ad/bottle/test and mvtec-ad/bottle/ground_truth exist",
            splits=_OWN_SPLIT.format("category and defect"),
            layout=("**/test/*/*.png", "**/ground_truth/*/*_mask.png"),
            images=1258,
        ),
        Description(
            name="visa",
            factory=visa,
            title="VisA: 12 objects (circuit boards, food, candles, capsules)",
            domain="industrial",
            licence="CC BY 4.0",
            citation="Zou, Jeong, Pemula, Zhang, Dabeer: SPot-the-Difference. ECCV 2022",
            how_to_get="https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar; unpack so that "
            "visa/split_csv/1cls.csv and visa/candle/Data exist",
            splits="1cls: " + _OWN_SPLIT.format("object") + "; protocol='2cls_highshot' or '2cls_fewshot': official "
            "train/test, validation is a fifth of train",
            layout=("**/split_csv/*.csv", "**/Data/Masks/Anomaly/*.png"),
            images=1200,
        ),
        Description(
            name="btad",
            factory=partial(mvtec_style, name="btad", good="ok"),
            title="BTAD (beanTech): 3 industrial products",
            domain="industrial",
            licence="often given as CC BY-NC-SA 4.0; none found with the archive",
            citation="Mishra, Verk, Fornasier, Piciarelli, Foresti: VT-ADL. ISIE 2021",
            how_to_get="https://avires.dimi.uniud.it/papers/btad/btad.zip; unpack so that btad/01/test/ko and "
            "btad/01/ground_truth/ko exist",
            splits=_OWN_SPLIT.format("product"),
            source=LinkSource("https://avires.dimi.uniud.it/papers/btad/btad.zip"),
            layout=("**/test/ko/*", "**/ground_truth/ko/*"),
            images=290,
        ),
        Description(
            name="mpdd",
            factory=partial(mvtec_style, name="mpdd"),
            title="MPDD: 6 kinds of painted metal parts, photographed at varying pose",
            domain="industrial",
            licence="often given as CC BY-NC-SA 4.0; none stated in its repository",
            citation="Jezek et al.: Deep learning-based defect detection of metal parts. ICUMT 2021",
            how_to_get="https://github.com/stepanje/MPDD (link there); unpack so that mpdd/bracket_black/test exists",
            splits=_OWN_SPLIT.format("category and defect"),
            layout=("**/test/*/*.png", "**/ground_truth/*/*_mask.png"),
            images=282,
        ),
        Description(
            name="kolektorsdd2",
            factory=kolektorsdd2,
            title="KolektorSDD2: surface of electrical commutators in production",
            domain="industrial",
            licence="CC BY-NC-SA 4.0",
            citation="Bozic, Tabernik, Skocaj: Mixed supervision for surface-defect detection: from weakly to fully "
            "supervised learning. Computers in Industry 2021",
            how_to_get="https://www.vicos.si/resources/kolektorsdd2/ (KolektorSDD2.zip); unpack so that "
            "kolektorsdd2/train and kolektorsdd2/test exist",
            splits=_OFFICIAL,
            source=LinkSource("https://go.vicos.si/kolektorsdd2"),
            layout=("**/train/*_GT.png", "**/test/*_GT.png"),
            images=356,
        ),
        Description(
            name="dagm2007",
            factory=dagm2007,
            title="DAGM 2007: 10 artificial textures with defects, coarse elliptic masks",
            domain="industrial",
            licence="CC BY 4.0 (as given on Zenodo)",
            citation="Wieler, Hahn: Weakly supervised learning for industrial optical inspection. DAGM 2007",
            how_to_get="https://zenodo.org/records/12750201 (Class1.zip ... Class10.zip); unpack so that "
            "dagm2007/Class1/Train/Label exists",
            splits=_OFFICIAL,
            layout=("**/Class*/Train/Label/*", "**/Class*/Test/Label/*"),
            images=2100,
        ),
        Description(
            name="spt-folder",
            factory=spt_folder,
            title="Sets prepared for SPT's own code: <set>/test/<stem>.jpg beside <stem>.png (0/255)",
            domain="industrial",
            licence="that of the sets put there",
            citation="Yang, Chen, Ding et al.: Self-Perception Tuning. AAAI 2025",
            how_to_get="prepare by hand: spt-folder/<set>/test/<stem>.jpg with <stem>.png; set='<set>' opens one",
            splits="as the folders say (SPT's own have test only); without val, a fifth of train is validation",
            layout=("**/test/*.jpg", "**/test/*.png"),
        ),
    )
}
