"""Which measurements claims, answers and forest plots compare: one name for each row of the tables."""

from samtune.report.contrasts import Side
from samtune.report.labels import row_label
from samtune.study import sam_sp, spt


def spt_main(method: str = "spt", prompt: str = "box", output: str = "final") -> Side:
    """A row of table `spt_main`; on sets that only notebook 00 measured, of `baselines`."""
    return Side("spt_main", method, prompt, output=output, fallback="baselines")


def spt_part(method: str = "spt", **options: object) -> Side:
    """A row of table `spt_ablation`, box prompts. Without both parts SPT is LoRA to the bit, so LoRA's stand for it."""
    return Side("spt_ablation", method, "box", options)


def sam_sp_main(method: str = "sam_sp", prompt: str = "none", output: str = "final", **options: object) -> Side:
    """A row of table `sam_sp_main`."""
    return Side("sam_sp_main", method, prompt, options, output)


def sam_sp_part(method: str = "sam_sp", prompt: str = "none", output: str = "final", **options: object) -> Side:
    """A row of table `sam_sp_ablation`."""
    return Side("sam_sp_ablation", method, prompt, options, output)


def asam_main(method: str = "asam", prompt: str = "box") -> Side:
    """A row of table `asam_main`."""
    return Side("asam_main", method, prompt)


def asam_part(method: str = "asam", **options: object) -> Side:
    """A row of table `asam_ablation`, box prompts."""
    return Side("asam_ablation", method, "box", options)


SAMED_DICE = sam_sp_part("lora_samed", **sam_sp.TAUGHT_DIRECTLY)  # LoRA's only pass, taught by the same Dice loss
SAMED_TWICE = sam_sp_part(trained_as="lora_samed")  # the same weights, tested with SAM-SP's two passes
SAM_SP_IN_TRUE_BOX = sam_sp_part(prompt="box", test_self_prompt="given")  # in its second pass, at test
FIRST_VERSION = sam_sp.TRUTH_ON_BOTH  # of the kit's SAM-SP


def side_label(side: Side) -> str:
    """A side's row in few words, for the head of a column."""
    called = {sam_sp.DICE: sam_sp.TAUGHT_DIRECTLY, sam_sp.ON_BOTH: sam_sp.TRUTH_ON_BOTH} | spt.PARTS
    variant = next((name for name, options in called.items() if options == side.options), "")
    return "LoRA, Dice loss" if variant == sam_sp.DICE else row_label(side.method, variant)
