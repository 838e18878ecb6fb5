"""What people read of a method: title and colour, which stand on its class, and its place among the others."""

from collections.abc import Sequence

from samtune.methods import METHODS
from samtune.study import sam_sp, spt

# Yardsticks, which are no methods: title and colour.
YARDSTICKS = {
    "truth": ("truth", "#d5d9e0"),
    "ellipse": ("inscribed ellipse", "#c4c9d2"),
    "grabcut": ("GrabCut", "#8a93a3"),
}
OTHERS = ("#CC79A7", "#009E73", "#a98600", "#0072B2", "#D55E00", "#56B4E9", "#E69F00")  # colours of what is no method


def method_order() -> list[str]:
    """Yardsticks, then methods from simple to elaborate: the order in which `METHODS` lists them."""
    return [*YARDSTICKS, *METHODS]


def label(method: str) -> str:
    """A method's name for people; of one of its outputs ("spt draft") with the output's."""
    name, _, output = method.partition(" ")
    known = {key: title for key, (title, _) in YARDSTICKS.items()}
    known |= {key: one.title for key, one in METHODS.items()}
    return f"{known[name]} {OUTPUTS.get(output, output)}".strip() if name in known else method.replace("_", " ")


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: the method's own; other names share `OTHERS` in order."""
    known = {name: colour for name, (_, colour) in YARDSTICKS.items()}
    known |= {name: method.colour for name, method in METHODS.items()}
    others = iter(OTHERS * (len(names) // len(OTHERS) + 1))
    return {name: known[name] if name in known else next(others) for name in names}


def in_order(names: Sequence[str]) -> list[str]:
    """Methods from simple to elaborate, other names after them as they come."""
    order = method_order()
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


# What prompts and outputs are called for people; those that are not listed are called as on the command line.
PROMPTS = {
    "box": "box", "box_jitter": "box that misses", "box+mask": "box and mask", "point_centre": "click in the centre",
    "point1": "one click", "point2": "two clicks", "point5": "five clicks", "point10": "ten clicks",
    "point20": "twenty clicks", "mask": "mask", "none": "no prompt",
}  # fmt: skip
METRIC_LABELS = {
    "iou": "IoU", "boundary_iou": "boundary IoU", "dice": "Dice", "box_iou": "box IoU",
    "hd95_transunet": "HD95 (TransUNet), px", "hd95_strict": "HD95 (strict), px", "s_measure": "S-measure",
    "e_measure_max": "E-measure (max)", "e_measure_mean": "E-measure (mean)",
    "e_measure_adaptive": "E-measure (adaptive)", "weighted_f": "weighted F", "mae": "MAE",
    "false_alarm_area": "false-alarm area", "box_area": "area of the prompt box", "psnr": "PSNR, dB", "ssim": "SSIM",
    "iou_drop": "loss of IoU",
}  # fmt: skip
OUTPUTS = {
    "final": "", "draft": "draft", "pass0": "first pass", "pass1": "second pass (its own prompt)",
    "pass2": "third pass", "pass3": "fourth pass", "best_of_3": "best of its three masks, picked by the truth",
    "best_by_truth": "best mask, picked by the truth", "at_mask_size": "as finely as SAM draws masks",
}  # fmt: skip
GLOSSARY = [
    ("zero-shot SAM", "the backbone as it is, not tuned (where that is nano, the nano SAM)"),
    ("LoRA", "SPT's baseline: low-rank adapters (rank 8, scale 1/8) in the encoder's and decoder's attention"),
    ("LoRA (as SAMed)", "SAMed's recipe, SAM-SP without self-prompting: LoRA of rank 4 in the encoder; prompt encoder "
     "and mask decoder tuned whole; no prompt from the user (`lora_samed` in files)"),
    ("draft", "SPT's first mask, which prompts its second decoder"),
    ("first pass, second pass", "SAM-SP's masks before and after it prompts itself (`pass0`, `pass1` in files)"),
    ("final", "the mask that a method hands out: its last pass, or its refined mask"),
    ("truth, as finely as SAM draws masks", "the true mask brought to the size of SAM's low-resolution masks and back: "
     "what a perfect model of this size would reach (`at_mask_size` in files)"),
    ("truth on both passes", "the kit's first version of SAM-SP: both passes taught by the truth; the paper teaches "
     "the second alone"),
    ("alpha", "SAM-SP's weight of the distillation beside the Dice loss (`distillation_weight` in files): 0.1, unless "
     "the row says another"),
    ("starting point", "of what SAM-SP's paper leaves open one thing is changed at a time, from here; its alpha is 1"),
    ("plain Dice", "a Dice loss whose denominator has sums in place of sums of squares"),
    ("everything mode", "SAM prompted by a grid of points, without a user; of its masks the one with the highest "
     "predicted IoU"),
    ("boundary IoU", "IoU of the bands along the two masks' outlines"),
    ("HD95", "the 95th percentile of the distances between the two outlines, in pixels; strict: a missed object counts "
     "as the picture's diagonal"),
    ("PSNR, SSIM", "how like two pictures are, by squared error in dB, and by local structure from 0 to 1"),
    ("DDIM inversion", "the denoising run backwards, from a picture to the noise that it would come from"),
    ("clean tuning", "ASAM's tokens tuned, by its loss, on the pictures as they are"),
    ("classical augmentation, PGD tuning", "the same on pictures with other colours, blur, noise and JPEG; on pictures "
     "attacked at their pixels by projected gradient descent"),
    ("DAT tuning", "the same on pictures attacked in the autoencoder's latent, without diffusion (after discrete "
     "adversarial training)"),
    ("generated pictures, reconstruction tuning", "the same on pictures drawn from noise by the diffusion model; on "
     "pictures inverted and not attacked"),
    ("victim", "the SAM that an attack is made to fool"),
    ("before", "what an attack starts from: the reconstruction"),
    ("change", "what an attack changed, added to the original picture"),
    ("random", "noise at the attack's bound in place of an attack"),
    ("evaluations", "of the diffusion network, for one picture"),
    ("seen set", "a set whose training pictures ASAM and its rivals were tuned on"),
    ("lean", "an attack without guidance and in two fifths of the denoising steps"),
    ("plateau", "trained ten times as long as the main table's models"),
    ("nano_mobile", "the second victim: the nano SAM's decoder on a small convolutional encoder, distilled from it"),
    ("ten clicks", "ten points drawn inside the true object: as SPT trains and is tested (`point10`)"),
    ("SDT, VRA", "SPT's self-draft tuning and its visual-relation-aware adapter"),
    ("nano SAM", "SAM's own classes at small size (three million parameters), which ships with the kit"),
    ("reproduced", "the 95% paired bootstrap interval over images and seeds lies above 0 (above the allowed margin)"),
    ("mean of sets", "the unweighted mean over the data sets named"),
    ("independent pictures", "pictures of one tile, patient, sequence or slide count as one"),
]  # fmt: skip


def prompt_label(prompt: str) -> str:
    """A prompt's name for people."""
    return PROMPTS.get(prompt, prompt.replace("_", " "))


def metric_label(metric: str) -> str:
    """A measure's name for people."""
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


# Variants that would not be understood beside the method's name.
_VARIANTS = {
    sam_sp.SAM_SP: "as in the main table",
    "iterations": "three self-prompts at test",
    f"{sam_sp.ON_BOTH}, {sam_sp.SAM_SP}": f"{sam_sp.ON_BOTH}, as in the main table",
    "starting point": "starting point (alpha 1)",
    "SAM": "as it is",
}


def row_label(method: str, variant: str = "", output: str = "final", trained: str = "") -> str:
    """What a table's row shows, in words: method, what it varies, which of its masks, how else it was trained."""
    if variant == sam_sp.FIRST_ALONE:
        method, variant = "lora_samed", f"{sam_sp.DICE}, tested with two passes"
    variant = _VARIANTS.get(variant, variant)
    return ", ".join(filter(None, (label(method), variant, OUTPUTS.get(output, output), trained)))


# What options are called that have learning rates of their own.
_CALLED = {
    "": sam_sp.SAMED,  # of all methods without prompts
    "starting point": sam_sp.START,
    **{name: sam_sp.START | changes for group in ("alpha", "recipe") for name, changes in sam_sp.GROUPS[group].items()},
    **{name: sam_sp.SAMED | changes for name, changes in sam_sp.BESIDE.items()},
    sam_sp.DICE: sam_sp.SAMED | sam_sp.TAUGHT_DIRECTLY,
    "two decoders, end to end": spt.END_TO_END,
    **spt.PARTS,
}


def rate_label(variant: str) -> str:
    """A variant of the table `learning_rates` ("0.001, relation False") with the options' name ("0.001, SDT"), where
    they have one; without the size of a U-Net's images, which is the backbone's."""
    rate, *options = (part for part in variant.split(", ") if not part.startswith("image_size "))
    called = {frozenset(f"{key} {value}" for key, value in one.items()): name for name, one in _CALLED.items()}
    return ", ".join(filter(None, (rate, called.get(frozenset(options), ", ".join(options)))))
