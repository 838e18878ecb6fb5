"""What this machine can do: pictures a second and peak memory of encoding, decoding and a training step.

Random weights cost what trained ones do, so that no checkpoint is needed. Methods are timed in turns, so that a machine
that slows down does so for all.
"""

import copy
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
import torch

from samtune.common import provenance
from samtune.common.devices import choose_precision, usable_device
from samtune.common.errors import InputError, is_out_of_memory, unknown
from samtune.common.paths import results_root
from samtune.methods import METHODS, Method, build_method, trainable_parameters
from samtune.prompts import Prompts
from samtune.sam.build import BACKBONES, Sam, new_sam
from samtune.study.cells import TimingCell
from samtune.study.records import Record
from samtune.study.runner import Result, missing_cells, run_cells

PHASES = ("encode", "decode", "train")
EVALUATE = "evaluate"  # the phase of ASAM's inversion and attack
SHARES = {"nano": 0.2, "vit_b": 1.0, "vit_l": 1.0, "vit_h": 1.0}  # of the time
BATCHES = (1, 2, 4, 8, 16, 32)
ROUNDS = 4  # a first one to warm up, then three of which the median counts
GAIN = 1.05  # a batch twice as large that gains less is the last one tried
MARGIN = 1.5  # a step may take that much longer than expected
# Multiply-adds per weight and token in a training step: 1 forward, 2 backward, doubled for all else.
TRAINING_PRODUCTS = 6
FIRST = ("lora", "spt", "sam_sp", "lora_samed")  # a short bench times these

Place = tuple[str, str]  # method, phase
Step = Callable[[], object]


def bench_methods(backbone: str) -> list[str]:
    """What is timed: every method that trains something on `backbone` (LoRA none on MobileSAM's kind), the papers'
    first.
    """

    def fits(name: str) -> bool:
        with suppress(InputError):
            return trainable_parameters(name, backbone) > 0
        return False

    return [name for name in dict.fromkeys((*FIRST, *METHODS)) if name != "zero_shot" and fits(name)]


def run_bench(
    results: str | Path,
    backbones: Sequence[str] = (),
    minutes: float = 5.0,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> list[Record]:
    """Time all methods on each backbone as far as `minutes` reach, and record it; what has a record is read.

    Batches double until a step does not fit into memory, gains nothing, or would not end in time. What time did not
    reach has no record, and is timed by the next run.

    Args:
        results: a profile's name, or its results folder.
        backbones: from small to large; none: those that the device can train in minutes.
        minutes: in all.
        device: "auto", "cpu", "cuda" ...
        say: is told what is being timed.
    """
    folder = results if isinstance(results, Path) else results_root(results)
    device = usable_device(device)
    torch.backends.cudnn.allow_tf32 = False  # as in the study
    backbones = backbones or (("nano", "vit_b") if device == "cpu" else tuple(SHARES))
    if strange := [name for name in backbones if name not in BACKBONES]:
        raise unknown("backbone", strange[0], BACKBONES)
    end = time.perf_counter() + 60 * minutes
    records: list[Record] = []
    shares = [(SHARES.get(name, 1.0), name, *setting) for name in backbones for setting in settings(device)]
    for place, (share, backbone, precision, compiled) in enumerate(shares):
        left = end - time.perf_counter()
        until = time.perf_counter() + left * share / sum(share for share, *_ in shares[place:])
        seconds = max(0.0, until - time.perf_counter())
        say(f"{backbone}, {precision}{', compiled' if compiled else ''}: up to {seconds:.0f} s")
        records += _bench_setting(folder, backbone, device, precision, compiled, until)
    return records


def settings(device: str) -> list[tuple[str, bool]]:
    """The precisions, and whether compiled, that are worth a try on `device`."""
    if device.startswith("cuda"):
        return [(precision, compiled) for compiled in (False, True) for precision in ("bf16", "fp32")]
    return [(precision, False) for precision in dict.fromkeys((choose_precision("auto", device), "fp32"))]


def _bench_setting(
    folder: Path, backbone: str, device: str, precision: str, compiled: bool, until: float
) -> list[Record]:
    """The records of one backbone in one setting, until the time `until` (of `time.perf_counter`)."""
    bench = _Bench(backbone, device, compiled, until)
    name = provenance.device_name(device)
    methods = bench_methods(backbone)
    growing = {(one, "train"): 0.0 for one in methods if one in FIRST}  # pictures a second at the batch before
    growing |= {(one, phase): 0.0 for phase in PHASES for one in methods}
    records: list[Record] = []
    for batch in BATCHES:
        cells = {
            place: TimingCell(place[0], backbone, place[1], batch, precision, compiled, name, ("speed",))
            for place in growing
        }
        missing = {cell.key() for cell in missing_cells(list(cells.values()), folder)}
        timed: dict[str, Result] = {}
        try:
            bench.time({place: cell for place, cell in cells.items() if cell.key() in missing}, growing, timed)
        finally:  # what is timed is kept, whatever stops the rest
            cells = {
                place: cell for place, cell in cells.items() if cell.key() in {*timed} or cell.key() not in missing
            }
            found = run_cells(
                list(cells.values()), folder, lambda cell, _, timed=timed: timed[cell.key()], say=lambda line: None
            )
        records += found
        speeds = {place: record.extras["images_per_second"] for place, record in zip(cells, found, strict=True)}
        growing = {place: speed for place, speed in speeds.items() if speed > GAIN * growing[place]}
        if not growing or time.perf_counter() > until:
            break
    del bench
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return records


class _Bench:
    """Methods on random weights of one backbone, and what is known of how long their steps take."""

    def __init__(self, backbone: str, device: str, compiled: bool, until: float) -> None:
        self.device, self.compiled, self.until = device, compiled, until
        self.backbone, self.sam = backbone, None
        self.methods: dict[str, Method] = {}
        self.slowest: dict[str, float] = {}  # seconds a picture by phase, preparations included

    def time(self, cells: Mapping[Place, TimingCell], speeds: Mapping[Place, float], timed: dict[str, Result]) -> None:
        """Put the result of every cell that time reaches into `timed`, by its key.

        The median of some rounds, in each of which every step has its turn; in the first round too no step is started
        that is not expected to end in time. One that does not fit into memory makes 0 pictures a second. On a CPU the
        first round counts where it is the only one, on a card never.

        Args:
            speeds: pictures a second at the batch before, 0 where that is not known.
        """
        steps: dict[Place, Step] = {}
        seconds: dict[Place, list[float]] = {}
        for number in range(ROUNDS):
            for place, cell in cells.items():
                known = seconds.get(place)
                if number and not known:  # did not fit, or was not reached
                    continue
                start = time.perf_counter()
                expected = known[-1] if known else self.expected(cell, speeds[place])
                if start + MARGIN * expected > self.until:
                    continue
                memory = None
                try:
                    if place not in steps:
                        steps[place] = _step(self.method(place[0]), cell, self.device)
                    taken, memory = run_step(steps[place], self.device)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    taken = None
                if taken is None:
                    seconds[place] = []
                else:
                    seconds.setdefault(place, []).append(taken)
                    a_picture = (time.perf_counter() - start) / cell.batch
                    self.slowest[cell.phase] = max(self.slowest.get(cell.phase, 0.0), a_picture)
                if len(seconds[place]) != 1 or self.device == "cpu":  # a card's first step compiles and fills caches
                    timed[cell.key()] = _result(cell, seconds[place], memory)

    def expected(self, cell: TimingCell, speed: float) -> float:
        """About how many seconds the first step of a cell takes: from its smaller batch, else from other methods' steps
        (a training step, which has all phases in it, in place of what is not known), else from products of matrices."""
        if speed:
            return cell.batch / speed
        slowest = self.slowest.get(cell.phase, self.slowest.get("train"))
        if slowest is not None:
            return cell.batch * slowest
        encoder = self.plain_sam().image_encoder
        weights = sum(parameter.numel() for parameter in encoder.parameters())
        tokens = (encoder.img_size // encoder.patch_embed.proj.stride[0]) ** 2
        return TRAINING_PRODUCTS * weights * tokens * cell.batch * _seconds_a_product(self.device)

    def plain_sam(self) -> Sam:
        """The backbone on random weights, of which every method has a copy."""
        if self.sam is None:
            torch.manual_seed(0)
            self.sam = new_sam(self.backbone)
        return self.sam

    def method(self, name: str) -> Method:
        """A method, made when its turn comes; its encoder compiled where asked."""
        if name not in self.methods:
            if METHODS[name].needs_sam:
                method = build_method(name, copy.deepcopy(self.plain_sam()))
            else:  # on pictures as large as the backbone's
                method = build_method(name, None, image_size=self.plain_sam().image_size)
            self.methods[name] = method.to(self.device)
            if self.compiled:
                (method.sam.image_encoder if METHODS[name].needs_sam else method).compile()
        return self.methods[name]


def _seconds_a_product(device: str) -> float:
    """Seconds that a multiplication and addition takes in a product of matrices of a layer's size."""
    left, right = torch.randn(512, 768, device=device), torch.randn(768, 768, device=device)
    seconds = min(run_step(lambda: left @ right, device)[0] for _ in range(5))
    return seconds / (512 * 768 * 768)


def _result(cell: TimingCell, seconds: Sequence[float], memory: float | None) -> Result:
    """Of the rounds' `seconds` (none: did not fit) the median; the first, to warm up, counts where it is the only."""
    taken = statistics.median(seconds[1:] or seconds) if seconds else None
    extras = {
        "images_per_second": cell.batch / taken if taken else 0.0,
        "peak_memory_mb": memory,
        "trainable_parameters": trainable_parameters(cell.method, cell.backbone),
    }
    return Result(precision=cell.precision, seconds=taken or 0.0, extras=extras)


def _step(method: Method, cell: TimingCell, device: str) -> Step:
    """One encoding, decoding or training step of a batch of random pictures, a box each."""
    size, batch = method.image_size, cell.batch
    images = torch.randn(batch, 3, size, size, device=device)
    boxes = torch.tensor([[0.2, 0.2, 0.7, 0.7]], device=device).repeat(batch, 1) * size
    prompts = Prompts(torch.arange(batch, device=device), boxes)
    masks = torch.zeros(batch, 1, size, size, device=device)
    masks[:, :, size // 5 : size * 7 // 10, size // 5 : size * 7 // 10] = 1
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=cell.precision == "bf16")
    if cell.phase == "decode":
        with torch.no_grad(), autocast:
            embedding = method.eval().encode(images[:1]).expand(batch, -1, -1, -1)
    if cell.phase == "train":
        optimiser = torch.optim.AdamW(method.trainable().values(), lr=1e-4)

    def encode() -> None:
        with torch.no_grad(), autocast:
            method.eval().encode(images)

    def decode() -> None:
        with torch.no_grad(), autocast:
            method.eval().decode(embedding, prompts)

    def train() -> None:
        with autocast:
            loss = method.train().loss(method(images, prompts), masks, torch.Generator(device).manual_seed(0))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return {"encode": encode, "decode": decode, "train": train}[cell.phase]


def run_step(step: Step, device: str) -> tuple[float, float | None]:
    """Seconds that a step takes, and the graphics memory in MiB that it needs beside the weights of all methods.

    On a CPU no memory is measured: what one step frees the next one takes, without the system's notice.
    """
    if not device.startswith("cuda"):
        start = time.perf_counter()
        step()
        return time.perf_counter() - start, None
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    start = time.perf_counter()
    step()
    torch.cuda.synchronize(device)
    taken = time.perf_counter() - start
    return taken, (torch.cuda.max_memory_allocated(device) - held) / 2**20


def speed_table(records: Sequence[Record]) -> pd.DataFrame:
    """One row a timing: method, backbone, phase, batch, precision, compiled, device, images_per_second,
    peak_memory_mb, trainable_parameters."""
    columns = ["method", "backbone", "phase", "batch", "precision", "compiled", "device"]
    measured = ["images_per_second", "peak_memory_mb", "trainable_parameters"]
    rows = [
        {name: record.cell[name] for name in columns} | {name: record.extras[name] for name in measured}
        for record in records
        if record.kind == "timing"
    ]
    table = pd.DataFrame(rows, columns=columns + measured)
    table["peak_memory_mb"] = table["peak_memory_mb"].astype(float)  # not measured on a CPU: not a number
    order = table["backbone"].map({name: place for place, name in enumerate(SHARES)}).fillna(len(SHARES))
    return table.assign(order=order).sort_values(["device", "order", *columns[:-1]]).drop(columns="order")


def recommendations(table: pd.DataFrame) -> pd.DataFrame:
    """Of a speed table, the fastest training step of each method and backbone on each device: batch, precision and
    whether to compile."""
    trained = table[(table["phase"] == "train") & (table["images_per_second"] > 0)]
    best = trained.groupby(["device", "backbone", "method"], sort=False)["images_per_second"].idxmax()
    return trained.loc[best].drop(columns="phase")
