"""SAM-SP's domains in their documented layouts: polyps, skin lesions, camouflaged objects. One mask for each image."""

from pathlib import Path

from samtune.data.entries import EntryDataset, Pairing, binary_entry, first_layout, read_bright
from samtune.data.files import pictures
from samtune.data.registry_entry import Description, LinkSource


def kvasir_seg(folder: Path) -> EntryDataset:
    """`Kvasir-SEG/images/<id>.jpg`, `masks/<id>.jpg`: masks are JPEG too, and are binarised at 127 of their mean
    colour.
    """
    pairs = first_layout(folder, [[Pairing("", "images", "masks")]])
    entries = [binary_entry(image.stem, image, mask, "polyp", read=read_bright) for _, image, mask in pairs]
    return EntryDataset("kvasir-seg", entries)


def _isic(part: str, images: str, masks: str) -> Pairing:
    """One part of ISIC 2018, with the names of its two folders."""
    return Pairing(part, images, masks, "ISIC_", "_segmentation")


ISIC_LAYOUTS = (
    (
        _isic("train", "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
        _isic("val", "ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
        _isic("test", "ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
    ),
    (_isic("", "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),),
)


def isic2018(folder: Path) -> EntryDataset:
    """`ISIC2018_Task1-2_<Part>_Input/ISIC_NNNNNNN.jpg`, `ISIC2018_Task1_<Part>_GroundTruth/*_segmentation.png`.

    Official splits where all three parts are there. The training part alone is split 60/20/20.
    """
    pairs = first_layout(folder, ISIC_LAYOUTS)
    entries = [binary_entry(image.stem, image, mask, "lesion", part) for part, image, mask in pairs]
    return EntryDataset("isic2018", entries)


def _shared(name: str, prefix: str) -> tuple[tuple[Pairing, ...], ...]:
    """The layout that papers on camouflage share: one training folder for COD10K and CAMO, a test folder for each."""
    test = Pairing("test", f"TestDataset/{name}/Imgs", f"TestDataset/{name}/GT")
    return (Pairing("train", "TrainDataset/Imgs", "TrainDataset/GT", prefix), test), (test,)


CAMOUFLAGE_LAYOUTS = {
    "cod10k": (
        (
            Pairing("train", "Train/Image", "Train/GT_Object", "COD10K-CAM-"),
            Pairing("test", "Test/Image", "Test/GT_Object", "COD10K-CAM-"),
        ),
        (Pairing("test", "Test/Image", "Test/GT_Object", "COD10K-CAM-"),),
        *_shared("COD10K", "COD10K-CAM-"),
    ),
    # The authors of CAMO spell "camourflage" in its file names.
    "camo": (
        (Pairing("train", "Images/Train", "GT", "camou"), Pairing("test", "Images/Test", "GT", "camou")),
        *_shared("CAMO", "camou"),
    ),
    "chameleon": ((Pairing("test", "TestDataset/CHAMELEON/Imgs", "TestDataset/CHAMELEON/GT"),),),
}


def cod10k(folder: Path) -> EntryDataset:
    """`COD10K-v3/{Train,Test}/{Image,GT_Object}/COD10K-CAM-1-Aquatic-1-BatFish-1.{jpg,png}`, or the shared layout.

    The class is the animal in the name. COD10K's images without camouflage (`COD10K-NonCAM-`, empty masks) are left
    out.
    """
    pairs = first_layout(folder, CAMOUFLAGE_LAYOUTS["cod10k"])
    entries = [
        binary_entry(image.stem, image, mask, image.stem.split("-")[-2], part, read_bright)
        for part, image, mask in pairs
    ]
    places = {image.parent for _, image, _ in pairs}
    plain = sum("NonCAM" in path.stem for place in places for path in pictures(place))
    return EntryDataset("cod10k", entries, {"not camouflaged": plain})


def camo(folder: Path) -> EntryDataset:
    """`CAMO-V.1.0-CVIU2019/Images/{Train,Test}/camourflage_NNNNN.jpg`, `GT/*.png`; or the shared layout."""
    return _camouflage("camo", folder)


def chameleon(folder: Path) -> EntryDataset:
    """`TestDataset/CHAMELEON/Imgs/animal-N.jpg`, `GT/animal-N.png`: 76 images, test only."""
    return _camouflage("chameleon", folder)


def _camouflage(name: str, folder: Path) -> EntryDataset:
    pairs = first_layout(folder, CAMOUFLAGE_LAYOUTS[name])
    return EntryDataset(
        name, [binary_entry(image.stem, image, mask, part=part, read=read_bright) for part, image, mask in pairs]
    )


_SHARED_FILES = "or TestDataset.zip and TrainDataset.zip linked at https://github.com/GewelsJI/SINet-V2"
_CAMOUFLAGE_SPLITS = "official train/test; validation is a fifth of train; test only where no train folder is there"

DATASETS: dict[str, Description] = {
    description.name: description
    for description in (
        Description(
            name="kvasir-seg",
            factory=kvasir_seg,
            title="Kvasir-SEG: polyps in colonoscopy",
            domain="medical",
            licence="research and education; other use by permission",
            citation="Jha et al.: Kvasir-SEG: A Segmented Polyp Dataset. MMM 2020",
            how_to_get="https://datasets.simula.no/kvasir-seg/; unpack so that kvasir-seg/Kvasir-SEG/images exists",
            splits="none official: 60/20/20, seed 0",
            source=LinkSource("https://datasets.simula.no/downloads/kvasir-seg.zip"),
            layout=("**/images/*.jpg", "**/masks/*.jpg"),
            images=1000,
        ),
        Description(
            name="isic2018",
            factory=isic2018,
            title="ISIC 2018 task 1: outlines of skin lesions in dermoscopy",
            domain="medical",
            licence="CC BY-NC 4.0",
            citation="Codella et al.: Skin Lesion Analysis Toward Melanoma Detection 2018. arXiv 1902.03368; "
            "Tschandl, Rosendahl, Kittler: HAM10000. Scientific Data 2018",
            how_to_get="https://challenge.isic-archive.com/data/#2018 (task 1: input and ground truth of training, "
            "validation, test); unpack so that isic2018/ISIC2018_Task1-2_Training_Input exists",
            splits="official 2,594/100/1,000 where all three parts are there; training part alone: 60/20/20, seed 0",
            layout=("**/ISIC2018_Task1-2_Training_Input/*.jpg", "**/ISIC2018_Task1_Training_GroundTruth/*.png"),
            images=3694,
        ),
        Description(
            name="cod10k",
            factory=cod10k,
            title="COD10K: camouflaged animals",
            domain="camouflage",
            licence="non-commercial research",
            citation="Fan, Ji, Sun, Cheng, Shen, Shao: Camouflaged Object Detection. CVPR 2020",
            how_to_get=f"COD10K-v3.zip linked at https://github.com/DengPingFan/SINet, {_SHARED_FILES}; unpack inside "
            "the folder",
            splits=_CAMOUFLAGE_SPLITS,
            layout=("**/*COD10K-CAM-*.jpg", "**/*COD10K-CAM-*.png"),
            images=5066,
        ),
        Description(
            name="camo",
            factory=camo,
            title="CAMO: camouflaged objects, natural and artificial",
            domain="camouflage",
            licence="non-commercial research",
            citation="Le et al.: Anabranch Network for Camouflaged Object Segmentation. CVIU 2019",
            how_to_get=f"https://sites.google.com/view/ltnghia/research/camo, {_SHARED_FILES}; unpack inside "
            "the folder",
            splits=_CAMOUFLAGE_SPLITS,
            layout=("**/camou*.jpg", "**/camou*.png"),
            images=1250,
        ),
        Description(
            name="chameleon",
            factory=chameleon,
            title="CHAMELEON: camouflaged animals",
            domain="camouflage",
            licence="none stated; research use",
            citation="Skurowski et al.: Animal camouflage analysis: Chameleon database. Unpublished, 2018",
            how_to_get="TestDataset.zip linked at https://github.com/GewelsJI/SINet-V2; unpack inside the folder",
            splits="test only",
            layout=("**/CHAMELEON/Imgs/*", "**/CHAMELEON/GT/*"),
            images=76,
        ),
    )
}
