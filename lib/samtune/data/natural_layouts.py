"""ASAM's natural sets in their documented layouts; those in formats of their own in the simple one of `own`."""

from functools import partial
from pathlib import Path

from samtune.common.errors import InputError
from samtune.data.coco_json import coco2017, lvis, sa_1b
from samtune.data.entries import EntryDataset, Pairing, binary_entry, content_root, first_layout, read_bright
from samtune.data.files import pictures
from samtune.data.index_maps import ade20k, cityscapes, voc2012
from samtune.data.own import HOW_TO, LAYOUT, SPLITS_TEXT, mask_folders
from samtune.data.registry_entry import Description

HRSOD_LAYOUTS = (
    (Pairing("test", "HRSOD_test", "HRSOD_test_mask"),),
    (Pairing("test", "imgs", "gts"),),
)


def hrsod_te(folder: Path) -> EntryDataset:
    """`HRSOD_test/<id>.jpg`, `HRSOD_test_mask/<id>.png` (the release), or `imgs`, `gts` (ASAM's copy): 400 images."""
    pairs = first_layout(folder, HRSOD_LAYOUTS)
    entries = [binary_entry(image.stem, image, mask, "", part, read_bright) for part, image, mask in pairs]
    return EntryDataset("hrsod-te", entries)


def big(folder: Path) -> EntryDataset:
    """`{val,test}/<name>_im.jpg` with `<name>_gt.png`: officially 50 and 100 images of one object, up to 5000 x 3600
    pixels.
    """
    root = content_root(folder, "test")
    entries = []
    for part in ("val", "test"):
        for image in [path for path in pictures(root / part) if path.stem.endswith("_im")]:
            mask = image.with_name(f"{image.stem.removesuffix('_im')}_gt.png")
            if not mask.is_file():
                raise InputError(f"image {image} has no mask: expected {mask}")
            entries.append(binary_entry(image.stem.removesuffix("_im"), image, mask, "", part, read_bright))
    return EntryDataset("big", entries)


_VAL_IS_TEST = "official val is test (its own test has no public labels); validation is a fifth of train"


def _mask_folder_set(name: str, title: str, licence: str, citation: str, source: str) -> Description:
    """One of ASAM's sets in formats of their own, which the user converts to the layout of `own.mask_folders`."""
    return Description(
        name=name,
        factory=partial(mask_folders, name=name),
        title=title,
        domain="natural",
        licence=licence,
        citation=citation,
        how_to_get=f"{source}; convert it to {name}/{HOW_TO}",
        splits=SPLITS_TEXT,
        layout=LAYOUT,
    )


DATASETS: dict[str, Description] = {
    description.name: description
    for description in (
        Description(
            name="sa-1b",
            factory=sa_1b,
            title="SA-1B: pictures with about 100 masks each, made by SAM's data engine",
            domain="natural",
            licence="SA-1B research licence (non-commercial, no redistribution)",
            citation="Kirillov et al.: Segment Anything. ICCV 2023",
            how_to_get="https://ai.meta.com/datasets/segment-anything-downloads (links expire); unpack sa_000000.tar "
            "into sa-1b/sa_000000 (ASAM needs no more)",
            splits="none official: 5% validation by hash of the name, the rest train, no test",
            layout=("**/sa_*.jpg", "**/sa_*.json"),
            images=11186,
            pretraining="train split (ASAM's tuning images); 5% by hash of the name for choices",
        ),
        Description(
            name="coco2017",
            factory=coco2017,
            title="COCO 2017: 80 kinds of everyday objects",
            domain="natural",
            licence="images: Flickr terms; annotations: CC BY 4.0",
            citation="Lin et al.: Microsoft COCO: Common Objects in Context. ECCV 2014",
            how_to_get="https://cocodataset.org/#download: val2017.zip, annotations_trainval2017.zip (and, for "
            "train=True, train2017.zip); unpack so that coco2017/val2017 and coco2017/annotations exist",
            splits=_VAL_IS_TEST + "; train=True opens train",
            layout=("**/annotations/instances_val2017.json", "**/val2017/*"),
            images=4952,
        ),
        Description(
            name="lvis",
            factory=lvis,
            title="LVIS v1: over 1,200 kinds of objects on COCO's pictures",
            domain="natural",
            licence="images: Flickr terms; annotations: CC BY 4.0",
            citation="Gupta, Dollar, Girshick: LVIS: A Dataset for Large Vocabulary Instance Segmentation. CVPR 2019",
            how_to_get="https://www.lvisdataset.org/dataset: lvis_v1_val.json (and lvis_v1_train.json for train=True) "
            "into lvis/; COCO's train2017 and val2017 beside it, or in coco2017/",
            splits="official val is test; train=True opens train, a fifth of it is validation",
            layout=("**/lvis_v1_val.json",),
            images=19809,
        ),
        Description(
            name="ade20k",
            factory=ade20k,
            title="ADE20K, full release: scenes with every object and region outlined",
            domain="natural",
            licence="non-commercial research and education (terms of use)",
            citation="Zhou et al.: Semantic Understanding of Scenes through the ADE20K Dataset. IJCV 2019",
            how_to_get="https://groups.csail.mit.edu/vision/datasets/ADE20K/request_data/ (form); unpack "
            "ADE20K_2021_17_01 inside the folder (not ADEChallengeData2016, which has no instances)",
            splits="official validation is test; validation is a fifth of training, by scene",
            layout=("**/validation/**/*_seg.png",),
            images=27574,
        ),
        Description(
            name="voc2012",
            factory=voc2012,
            title="PASCAL VOC 2012 segmentation: 20 kinds of objects",
            domain="natural",
            licence="images: Flickr terms; research use",
            citation="Everingham et al.: The PASCAL Visual Object Classes Challenge: A Retrospective. IJCV 2015",
            how_to_get="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (VOCtrainval_11-May-2012.tar); unpack so that "
            "voc2012/VOCdevkit/VOC2012/SegmentationObject exists",
            splits=_VAL_IS_TEST,
            layout=("**/SegmentationObject/*.png", "**/SegmentationClass/*.png", "**/ImageSets/Segmentation/val.txt"),
            images=2913,
        ),
        Description(
            name="cityscapes",
            factory=cityscapes,
            title="Cityscapes: street scenes from a car in 50 cities",
            domain="natural",
            licence="non-commercial research (Cityscapes licence)",
            citation="Cordts et al.: The Cityscapes Dataset for Semantic Urban Scene Understanding. CVPR 2016",
            how_to_get="https://www.cityscapes-dataset.com/downloads/ (account): leftImg8bit_trainvaltest.zip and "
            "gtFine_trainvaltest.zip, unpacked inside the folder",
            splits=_VAL_IS_TEST + ", in whole cities",
            layout=("**/leftImg8bit/val/*/*.png", "**/gtFine/val/*/*_gtFine_instanceIds.png"),
            images=3475,
        ),
        Description(
            name="hrsod-te",
            factory=hrsod_te,
            title="HRSOD-TE: salient objects at high resolution, test part",
            domain="natural",
            licence="none stated; research use",
            citation="Zeng, Zhang, Zhang, Lin, Lu: Towards High-Resolution Salient Object Detection. ICCV 2019",
            how_to_get="HRSOD_release linked at https://github.com/yi94code/HRSOD; unpack so that hrsod-te/HRSOD_test "
            "and hrsod-te/HRSOD_test_mask exist",
            splits="test only",
            images=400,
            layout=("**/*.jpg", "**/*.png"),
        ),
        Description(
            name="big",
            factory=big,
            title="BIG: one object at 2K to 6K, hand-outlined",
            domain="natural",
            licence="images: Flickr terms, non-commercial",
            citation="Cheng, Chung, Tai, Tang: CascadePSP. CVPR 2020",
            how_to_get="linked at https://github.com/hkchengrex/CascadePSP (docs/dataset.md); unpack so that big/test "
            "and big/val exist",
            splits="official 50 val, 100 test",
            layout=("**/*_im.jpg", "**/*_gt.png"),
            images=150,
        ),
        _mask_folder_set(
            "doors",
            "DOORS: boulders on the surface of small bodies, rendered",
            "CC BY 4.0",
            "Pugliatti, Topputo: DOORS: Dataset fOr bOuldeRs Segmentation. arXiv 2210.16253, 2022",
            "https://zenodo.org/records/7107409",
        ),
        _mask_folder_set(
            "zerowaste-f",
            "ZeroWaste-f: recyclable waste on a conveyor belt, fully labelled part",
            "CC BY-NC 4.0",
            "Bashkirova et al.: ZeroWaste: Towards Deformable Object Segmentation in Cluttered Scenes. CVPR 2022",
            "http://ai.bu.edu/zerowaste/ (COCO json)",
        ),
        _mask_folder_set(
            "ndispark",
            "NDISPark: cars on parking lots, by night and day, from surveillance cameras",
            "CC BY 4.0",
            "Ciampi, Santiago, Costeira, Gennaro, Amato: Domain Adaptation for Traffic Density Estimation. VISAPP 2021",
            "https://zenodo.org/records/6560823 (COCO json)",
        ),
        _mask_folder_set(
            "egohos",
            "EgoHOS: hands and the objects they hold, seen by their owner",
            "non-commercial research; terms of its video sources",
            "Zhang, Zhou, Stent, Shi: Fine-Grained Egocentric Hand-Object Segmentation. ECCV 2022",
            "https://github.com/owenzlz/EgoHOS (index maps: 1 left hand, 2 right hand, 3 to 8 objects)",
        ),
        _mask_folder_set(
            "plittersdorf",
            "Plittersdorf: deer and other wild animals in a stereo camera trap",
            "none stated; cite the paper",
            "Haucke, Kühl, Steinhage: SOCRATES: Introducing Depth in Visual Wildlife Monitoring Using Stereo Vision. "
            "Sensors 2022",
            "https://github.com/timmh/socrates (COCO json)",
        ),
    )
}
