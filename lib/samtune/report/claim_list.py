"""The papers' claims, and our own questions, as data: what is compared, in which direction, and where it is from.

A claim is a contrast of measurements (`samtune.report.contrasts`), written so that it holds when the effect, and the
margin that it allows, are above 0.
"""

from dataclasses import dataclass

from samtune.report.contrasts import Side, Terms, above
from samtune.report.sides import (
    FIRST_VERSION,
    SAMED_DICE,
    asam_main,
    asam_part,
    sam_sp_main,
    sam_sp_part,
    spt_main,
    spt_part,
)
from samtune.study import sam_sp
from samtune.study.asam import SECOND_VICTIM

# Three kinds, whose counts are never added up: heading, and what it means.
KINDS = {
    "paper": ("The papers' claims", "What the paper says of its method against the others."),
    "sanity": ("Sanity checks", "Tuned against untuned: these must hold, and say nothing of the paper's method."),
    "own": ("Our own questions", "Not in the paper."),
}
OURS = "this kit"


@dataclass(frozen=True)
class Claim:
    """One claim.

    `id` as in the papers' sheets (a chain is split: S1a, S1b); `statement` for people; `metric`; `terms` weighted
    measurements whose sum is the effect; `margin` what it allows the effect to be below 0 (a claim of "within 2 points"
    0.02); `transfer` measures only where the set was NOT trained on, else only where it was; `backbone` "" is the
    profile's own, "second victim" the one of its `asam.SECOND_VICTIMS`; `kind` one of `KINDS`; `source` where the claim
    comes from; `reference` False where the paper's direction is not known; `beside` a measurement that both of the
    first two terms are compared with in a note; `rates`: the note names their learning rates, which were chosen for
    each, and move the same parameters far or less far; `caution` further words of the note.
    """

    id: str
    statement: str
    metric: str
    terms: Terms
    source: str
    kind: str = "paper"
    margin: float = 0.0
    transfer: bool = False
    backbone: str = ""
    reference: bool = True
    beside: Side | None = None
    rates: bool = False
    caution: str = ""

    @property
    def paper(self) -> str:
        """Name of the paper's numbers: "spt", "sam_sp" or "asam"."""
        return {"S": "spt", "P": "sam_sp", "A": "asam"}[self.id[0]]


def _spt_claims() -> list[Claim]:
    source = "SPT, main tables (values not at hand)"
    claims = []
    for number, prompt, words in ((1, "box", "box prompts"), (2, "point10", "ten clicks")):
        spt, lora, plain = (spt_main(method, prompt) for method in ("spt", "lora", "zero_shot"))
        for letters, metric, name in (("ab", "iou", "IoU"), ("cd", "boundary_iou", "boundary IoU")):
            over, tuned = (f"S{number}{letter}" for letter in letters)
            claims += [
                Claim(over, f"SPT above LoRA alone, {words}, {name}", metric, above(spt, lora), source),
                Claim(
                    tuned, f"LoRA above zero-shot SAM, {words}, {name}", metric, above(lora, plain), source, "sanity"
                ),
            ]
    sdt, vra, both, neither = spt_part(relation=False), spt_part(draft=False), spt_part(), spt_part("lora")
    source = "SPT, ablation (values not at hand)"
    claims += [
        Claim("S3a", "Self-draft tuning helps alone, box prompts", "iou", above(sdt, neither), source),
        Claim("S3b", "The visual-relation-aware adapter helps alone, box prompts", "iou", above(vra, neither), source),
        Claim("S3c", "Both are above self-draft tuning alone, box prompts", "iou", above(both, sdt), source,
              beside=neither),
        Claim("S3d", "Both are above the adapter alone, box prompts", "iou", above(both, vra), source,
              beside=neither),
        Claim("S4", "The refined mask is above its own draft, box prompts", "iou",
              above(spt_main("spt", "box"), spt_main("spt", "box", "draft")), source),
    ]  # fmt: skip
    for letter, backbone in (("a", "vit_b"), ("b", "vit_l"), ("c", "vit_h")):
        claims.append(
            Claim(f"S5{letter}", f"The gain over LoRA holds for {backbone}, box prompts", "iou",
                  above(spt_main("spt", "box"), spt_main("lora", "box")), "SPT, main tables (values not at hand)",
                  backbone=backbone)
        )  # fmt: skip
    click = spt_main("spt", "point1")
    return [
        *claims,
        Claim("S6", "Tuned on one set and tested on another, SPT is above LoRA, box prompts", "iou",
              above(both, neither), OURS, "own", transfer=True, beside=spt_part("zero_shot")),
        Claim("S7a", "SPT above LoRA alone, one click, IoU", "iou",
              above(click, spt_main("lora", "point1")), OURS, "own"),
        Claim("S7b", "The refined mask is above its own draft, one click", "iou",
              above(click, spt_main("spt", "point1", "draft")), OURS, "own"),
    ]  # fmt: skip


def _sam_sp_claims() -> list[Claim]:
    def passed(number: int) -> Side:
        return sam_sp_part(output=f"pass{number}", test_iterations=sam_sp.MOST_ITERATIONS)

    table = "SAM-SP, polyp table"
    figure = "SAM-SP, figure 4 (values not at hand)"
    whole = sam_sp_main("sam_sp")
    return [
        Claim("P1a", "SAM-SP without prompts is above zero-shot SAM without prompts", "dice",
              above(whole, sam_sp_main("zero_shot")), table, "sanity"),
        Claim("P1b", "SAM-SP is above LoRA without self-prompting", "dice",
              above(whole, sam_sp_main("lora_samed")), table),
        Claim("P1c", "SAM-SP is above SAM's everything mode, its mask picked by predicted IoU", "dice",
              above(whole, sam_sp_main("zero_shot", everything=sam_sp.GRID)), "SAM-SP, abstract", "sanity"),
        Claim("P2a", "The self-prompted pass is above the first", "dice",
              above(sam_sp_main("sam_sp", output="pass1"), sam_sp_main("sam_sp", output="pass0")),
              "SAM-SP, figure 3 (pictures alone)"),
        Claim("P2b", "More iterations saturate: the first self-prompt gains more than the next two together", "dice",
              ((2.0, passed(1)), (-1.0, passed(0)), (-1.0, passed(3))), figure),
        Claim("P2c", "More iterations do no harm: three self-prompts are at most 1 point below one",
              "dice", above(passed(3), passed(1)), f"{figure}; the margin is this kit's", "own", margin=0.01),
        # The first pass of SAM-SP never sees the truth, so that P2a alone says little of self-prompting.
        Claim("P2d", "The self-prompted pass is above the only pass of LoRA that was taught the truth by the same Dice "
              "loss, in as many images", "dice",
              above(whole, SAMED_DICE), OURS, "own"),
        Claim("P3", "Self-distillation adds to self-prompting", "dice",
              above(whole, sam_sp_part("sam_sp", distillation_weight=0.0)), "SAM-SP, abstract"),
        Claim("P4", "SAM-SP without prompts is at most 2 points below SAM given true boxes", "dice",
              above(whole, sam_sp_main("zero_shot", "box", per_object=True)), OURS, "own", margin=0.02),
        Claim("P5", "Truth on the second pass alone is above truth on both", "dice",
              above(whole, sam_sp_main("sam_sp", **FIRST_VERSION)),
              "SAM-SP, figure 5 (the paper's ranking is not known)", "own", reference=False),
        Claim("P6a", "SAM-SP is above a U-Net of equal training budget", "dice", above(whole, sam_sp_main("unet")),
              f"{table} (its U-Net: PraNet's protocol)", beside=sam_sp_main("lora_samed"),
              caution="A network from scratch may gain most from longer training: see P6b. In the paper's table SAM-SP "
              "is below newer task-specific networks (PolypPVT by 5.5 points in the mean), which the kit has not."),
        Claim("P6b", "SAM-SP is above a U-Net when both are trained ten times as long (30,000 images)", "dice",
              above(sam_sp_part(images=30_000), sam_sp_part("unet", images=30_000)), OURS, "own"),
    ]  # fmt: skip


def _asam_claims() -> list[Claim]:
    main, ablated = asam_main, asam_part
    table = "ASAM, performance tables (14 unseen sets, ViT-B, box prompt)"
    asam, plain, pgd, dat, clean = (main(one) for one in ("asam", "zero_shot", "pgd", "dat", "clean_tuning"))
    unseen = {"transfer": True, "rates": True}
    fooled = above(ablated("zero_shot", pictures="reconstructed"), ablated("zero_shot", pictures="adversarial"))
    return [
        Claim("A1", "ASAM is above SAM on sets that it was not tuned on", "iou",
              above(asam, plain), table, **unseen),
        Claim("A2a", "ASAM is above tuning on pixel-attacked (PGD) images", "iou", above(asam, pgd), table, **unseen,
              caution="How far PGD's images fool SAM is not measured."),
        Claim("A2b", "ASAM is above DAT tuning", "iou", above(asam, dat), table, beside=plain, **unseen,
              caution="Attacks of unlike strength: see *loss of IoU* in the table of inversions and attacks."),
        # Clean tuning beside them: where it falls below SAM too, the fall is not PGD's or DAT's doing.
        Claim("A2c", "SAM is above PGD tuning", "iou", above(plain, pgd), table, beside=clean, **unseen),
        Claim("A2d", "SAM is above DAT tuning", "iou", above(plain, dat), table, beside=clean, **unseen),
        Claim("A3", "ASAM is above tuning on plain generated images", "iou", above(asam, main("generated")), table,
              **unseen, caution="The nano model's images follow their masks, but their colours are too strong."),
        Claim("A4a", "SAM's IoU is lower on latent adversarial images than on them before the attack", "iou", fooled,
              "ASAM, method", "sanity"),
        Claim("A4b", "With the mask ControlNet adversarial images stay nearer to the originals", "ssim",
              above(ablated("attack", controlnet=True), ablated("attack", controlnet=False)), "ASAM, method"),
        Claim("A5", "The five tokens suffice (1,280 parameters in SAM): at most 1 point below the whole decoder", "iou",
              above(ablated(), ablated(tuned="decoder")), "ASAM, method; the margin is this kit's", "own", margin=0.01,
              transfer=True),
        Claim("A6a", "The gain carries over to a second SAM tuned on the same images (in the paper EfficientSAM)",
              "iou", above(ablated(), ablated("zero_shot")), "ASAM, transfer (values not at hand)",
              backbone=SECOND_VICTIM, **unseen),
        Claim("A6b", "The images made to fool SAM fool a second SAM too, whose encoder was distilled from it", "iou",
              fooled, OURS, "own", backbone=SECOND_VICTIM),
        Claim("A7a", "ASAM is above the same tuning on the clean pictures", "iou",
              above(asam, clean), OURS, "own", **unseen),
        # ASAM's images went through the diffusion model, at its resolution; the clean pictures did not.
        Claim("A7b", "ASAM is above the same tuning on its images before the attack", "iou",
              above(asam, main("reconstructed")), OURS, "own", **unseen),
        # It is tuned with them too; the paper's tables are of boxes.
        Claim("A8a", "With ten clicks ASAM is above SAM", "iou",
              above(main(prompt="point10"), main("zero_shot", "point10")), OURS, "own", **unseen),
        Claim("A8b", "With ten clicks ASAM is above the same tuning on the clean pictures", "iou",
              above(main(prompt="point10"), main("clean_tuning", "point10")), OURS, "own", **unseen),
    ]  # fmt: skip


CLAIMS: tuple[Claim, ...] = (*_spt_claims(), *_sam_sp_claims(), *_asam_claims())
