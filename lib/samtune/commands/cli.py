"""The command line, `samtune --help`. Modules that need torch are imported inside the commands, so
that help is fast.
"""

import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from samtune import __version__
from samtune.commands import data
from samtune.commands.texts import (
    coordinates,
    file_as_absolute,
    method_options,
    names_as_flags,
    scores_text,
    worse_text,
)
from samtune.common.atomic import disk_full, is_disk_full
from samtune.common.errors import InputError, counted, duration_text, first_line

BAD_INPUT, STOPPED = 2, 130


class _Commands(TyperGroup):
    """Shows an `InputError` as one line on stderr; `--debug` may be anywhere on the line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:
            args = ["--debug", *(argument for argument in args if argument != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say_error("stopped; what is written stays, the same command completes it")
            raise typer.Exit(STOPPED) from None
        except (InputError, OSError) as error:
            if isinstance(error, BrokenPipeError):  # `samtune data list | head`
                raise
            if ctx.params.get("debug"):
                traceback.print_exc()
            say_error(str(disk_full(Path(), error) if is_disk_full(error) else error))
            raise typer.Exit(BAD_INPUT) from None


app = typer.Typer(
    cls=_Commands,
    help="Tune the Segment Anything Model on your own pictures, and rerun the study of the kit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data.app, name="data")


def say_error(message: str) -> None:
    """Print `message` on stderr, after the program's name."""
    typer.echo(f"samtune: {message}", err=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"samtune {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error in the input.")] = False,
) -> None:
    """Options of all commands."""


# ---------------------------------------------------------------- own pictures

Backbone = Annotated[str, typer.Option(help="nano (comes along), vit_b, vit_l, vit_h (fetched once), or a file.")]
MovedBackbone = Annotated[
    str | None, typer.Option("--backbone", help="The backbone's file, if it is no longer where it was in tuning.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 (the second card) or mps.")]
Precision = Annotated[str, typer.Option(help="auto (bf16 where the machine is built for it), fp32 or bf16.")]
Checkpoint = Annotated[Path, typer.Option(help="tuned.safetensors, as written by samtune tune; or a whole SAM.")]


@app.command()
def tune(
    images: Annotated[Path, typer.Option(help="Folder of pictures.")],
    masks: Annotated[
        Path,
        typer.Option(
            help="Folder of masks, named as the pictures (or a folder a picture: one object a file); or a COCO json."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write to; a run that was broken off there goes on.")],
    method: Annotated[
        str,
        typer.Option(
            help="lora, lora_samed, decoder_tuning, spt, sam_sp (without prompts), asam (its tokens, on your pictures)."
        ),
    ] = "lora",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the method: rank=4; may be repeated.")
    ] = None,
    backbone: Backbone = "nano",
    epochs: Annotated[
        float | None,
        typer.Option(help="How often to see every picture. Default: 16, 400 images at least; more where that helps."),
    ] = None,
    train_images: Annotated[int | None, typer.Option(help="In place of --epochs: images to see in all.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: searched on a part of the pictures, in 175 to 275 steps.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures at a time; memory grows with it.")] = 4,
    accumulate: Annotated[int, typer.Option(help="Batches before the weights change.")] = 1,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Prompts to tune with and measure: box, box_jitter, point<k>, mask, none, box+point1. Default: "
            "the method's: box,point10; of asam box,point10,mask; of sam_sp none."
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(help="union: all objects of a picture are one mask; instances: each is its own.")
    ] = "union",
    objects: Annotated[int, typer.Option(help="With instances: the most taken of a picture at a time.")] = 4,
    preprocess: Annotated[str, typer.Option(help="pad (as segment_anything's SamPredictor) or stretch.")] = "pad",
    mask_coding: Annotated[
        str, typer.Option(help="binary255 (object > 127), binary1 (object 1) or index (0 background, others objects).")
    ] = "binary255",
    void: Annotated[
        int | None, typer.Option(help="With index: the value of pixels that are not scored (background in tuning).")
    ] = None,
    mask_suffix: Annotated[
        str, typer.Option(help="What a mask's name has after its picture's: _mask for a.jpg and a_mask.png.")
    ] = "",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad files out; list them at the end.")] = False,
    seed: Annotated[int, typer.Option(help="Of training and prompts; the held-out fifth is always the same.")] = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    save_memory: Annotated[
        bool,
        typer.Option(
            "--save-memory", help="Of lora, lora_samed, spt, sam_sp: less memory, a quarter to a third more time."
        ),
    ] = False,
) -> None:
    """Tune SAM on a folder of pictures and masks.

    A fifth of the pictures is held out and measured before and after. Writes OUT/tuned.safetensors and
    OUT/metrics.csv.
    """
    from samtune.commands import tune

    prompts = tuple(part.strip() for part in prompt.split(",")) if prompt else ()
    settings = tune.TuneSettings(
        method, file_as_absolute(backbone), method_options(option or [], method), epochs, train_images, learning_rate,
        batch_size, accumulate, prompts, target, objects, preprocess, mask_coding, void, mask_suffix, seed,
    )  # fmt: skip
    with names_as_flags():
        result = tune.tune(images, masks, out, settings, skip_bad, device, precision, save_memory, typer.echo)
    typer.echo(f"\n{scores_text(result.scores)}\n")
    typer.echo(f"{counted(result.pictures, 'held-out picture')}, one by one: {result.metrics}")
    if result.pictures < tune.FEW:
        typer.echo(f"(with fewer than {tune.FEW} pictures, take these means as a hint)")
    worse = worse_text(result.scores, settings)
    if worse:
        typer.echo(worse)
    typer.echo(f"tuned model{' (worse, see above)' if worse else ''}: {result.checkpoint}")
    prompted = " --points FILE.csv" if all("point" in one for one in settings.prompts) else " --boxes FILE.csv"
    prompted = "" if settings.prompts == ("none",) else prompted
    typer.echo(f"next: samtune predict --checkpoint {result.checkpoint} --images DIR{prompted} --out DIR")
    if result.skipped:
        typer.echo(f"\nleft out, {counted(len(result.skipped), 'bad file')}:", err=True)
        for line in result.skipped:
            typer.echo(f"  {line}", err=True)


@app.command()
def predict(
    checkpoint: Checkpoint,
    images: Annotated[Path, typer.Option(help="A picture, or a folder of pictures.")],
    out: Annotated[Path, typer.Option(help="Folder to write predicted_masks/ and overlays/ to.")],
    boxes: Annotated[Path | None, typer.Option(help="csv: image,x0,y0,x1,y1; a row an object.")] = None,
    points: Annotated[
        Path | None, typer.Option(help="csv: image,x,y and if wanted label (1, or 0: not this) and object.")
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="In pixels, for every picture; repeated: several objects."),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y", help="Or X,Y,0 (not this); for every picture; repeated: on one object."),
    ] = None,
    backbone: MovedBackbone = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Segment pictures with a tuned model, or with a checkpoint that SPT's authors released (give its --backbone).

    Writes OUT/predicted_masks/NAME.png (0/255) and OUT/overlays/NAME.png.
    """
    from samtune.commands import predict

    with names_as_flags():
        predict.predict(
            checkpoint, images, out, boxes, points,
            [coordinates("--box", one, (4,)) for one in box or []],
            [coordinates("--point", one, (2, 3)) for one in point or []],
            backbone and file_as_absolute(backbone), device, precision, typer.echo,
        )  # fmt: skip


@app.command()
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="File to write, such as sam.pth.")],
    backbone: MovedBackbone = None,
) -> None:
    """Write a tuned model in SAM's own format.

    One file with the tuning folded in, which plain segment_anything loads.
    """
    from samtune.commands import tuned

    tuned.export(checkpoint, out, backbone and file_as_absolute(backbone), typer.echo)


# ---------------------------------------------------------------- the study

ProfileOption = Annotated[
    str, typer.Option(callback=file_as_absolute, help="See samtune profiles; or a yaml file of your own.")
]


@app.command()
def profiles() -> None:
    """List at what scales the study can be run."""
    from samtune.study.profile import load_profile, profile_names

    known = [load_profile(name) for name in profile_names()]
    for one in sorted(known, key=lambda one: (one.images is None, one.images)):
        typer.echo(f"{one.name:6}  {one.description}")
        typer.echo(f"        backbone {one.backbone}, {counted(len(one.seeds), 'seed')}")


@app.command()
def results(
    profile: ProfileOption = "quick",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is left, hours and disk.")] = False,
    cells_only: Annotated[
        bool, typer.Option("--cells-only", help="No notebooks, for more processes beside one that runs them.")
    ] = False,
) -> None:
    """Run the notebooks of a profile, and report.

    What has a record already is not run again. Exit status 1 when a notebook fails; the others are run and reported.
    """
    from samtune.commands.notebooks import NotebookError, run_profile
    from samtune.report.pages import build_report
    from samtune.study.notebooks import ask_for_cells
    from samtune.study.profile import load_profile

    chosen = load_profile(profile)
    say_outlook(chosen)
    if dry_run:
        return
    if cells_only:
        failed = 0
        for notebook in chosen.notebooks:
            try:
                ask_for_cells(notebook, chosen)
            except Exception as error:  # of a cell, whatever it is: the other notebooks are asked for nevertheless
                if is_disk_full(error):
                    raise
                if not isinstance(error, InputError):
                    traceback.print_exc()
                say_error(f"{notebook}: {first_line(error)}")
                failed += 1
        raise typer.Exit(int(failed > 0))
    failure = None
    try:
        run_profile(profile)
    except NotebookError as error:
        failure = str(error)
    typer.echo(f"report: {build_report(profile)}")
    if failure:
        say_error(failure)
        raise typer.Exit(1)


@app.command()
def attack(profile: ProfileOption = "quick") -> None:
    """Make ASAM's adversarial pictures of a profile, and nothing else.

    Of the pictures of the data sets in its generation.sets, with its diffusion model, against its backbone. A run that
    was broken off goes on.
    """
    from samtune.commands.attack import attack as make
    from samtune.study.profile import load_profile
    from samtune.study.records import cell_of

    chosen = load_profile(profile)
    record, sheet = make(chosen, typer.echo)
    name, iou = cell_of(record).name, record.objects.groupby("output")["iou"].mean()
    before, after = (f"IoU {iou[output]:.3f}" for output in ("before", "final"))
    typer.echo(f"{chosen.backbone} in true boxes: {before} on the reconstructions, {after} on the adversarial pictures")
    typer.echo(f"look at them: {sheet}\nnext: samtune data export {name} adversarial")
    method = f"--method asam --backbone {chosen.backbone} --target instances"
    folders = "--images adversarial/images --masks adversarial/masks"
    typer.echo(f"then: samtune tune {method} {folders} --out tuned")


@app.command()
def bench(
    profile: ProfileOption = "quick",
    backbone: Annotated[
        list[str] | None, typer.Option(help="From small to large, may be given again; without: what fits the device.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="In all.")] = 5.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
) -> None:
    """Time every method on this machine, and say what a profile would take here.

    Pictures a second and memory of encoding, decoding and a training step, into the table `speed` of the profile; the
    fastest batch size, precision and compilation. Do nothing else on the machine meanwhile.
    """
    from samtune.study.bench import EVALUATE, recommendations, run_bench, speed_table
    from samtune.study.bench_generation import run_generation_bench
    from samtune.study.profile import load_profile

    chosen = load_profile(profile)
    typer.echo(f"about {minutes:g} minutes")
    start = time.perf_counter()
    records = run_generation_bench(chosen, minutes / 4, device, typer.echo)
    left = minutes - (time.perf_counter() - start) / 60
    table = speed_table([*records, *run_bench(chosen.name, backbone or (), left, device, typer.echo)])
    columns = ["method", "backbone", "batch", "precision", "compiled", "images_per_second", "peak_memory_mb"]
    for name, fastest in recommendations(table).groupby("device"):
        typer.echo(f"\nThe fastest training steps on {name}:\n{fastest[columns].to_string(index=False)}")
    for row in table[table["phase"] == EVALUATE].itertuples():
        typer.echo(f"ASAM's {row.method} on {row.device}: {row.images_per_second:.3g} network evaluations a second")
    say_outlook(chosen)


def _cost(seconds: float | None, size: int) -> str:
    """The time and disk that cells still need, as the end of a sentence; "" where there is nothing to run."""
    if not size:
        return ""
    time = "time unknown (`samtune bench` measures it)" if seconds is None else f"about {duration_text(seconds)}"
    return f": {time} on this machine in one process, {size / 1e9:.1f} GB"


def say_outlook(profile: Any) -> None:
    """Print for each notebook how many of its cells have a record, and time and disk for the others;
    then the totals.
    """
    from samtune.study.notebooks import outlook

    known = True
    seconds = size = missing = 0
    for left in outlook(profile):
        if left.lacking:
            typer.echo(f"{left.notebook}: not counted: {left.lacking}")
            known = False
            continue
        known &= left.seconds is not None
        seconds, size, missing = seconds + (left.seconds or 0), size + left.bytes, missing + left.missing
        typer.echo(f"{left.notebook}: {left.cells} cells, {left.missing} to run{_cost(left.seconds, left.bytes)}")
    typer.echo(f"profile {profile.name}: {missing} cells to run{_cost(seconds if known else None, size)}")


@app.command()
def report(
    profile: ProfileOption = "quick",
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Also report.html: everything in one file, for mail.")
    ] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also report.pdf, by Chromium where it is installed.")] = False,
) -> None:
    """Rebuild a profile's report from its records.

    Tables, claims and pages are written again; nothing is run.
    """
    from samtune.common.paths import results_root
    from samtune.report import share
    from samtune.report.pages import build_report
    from samtune.study.profile import load_profile
    from samtune.study.records import SUFFIX

    folder = results_root(load_profile(profile).name) / "records"
    if not any(folder.glob(f"*{SUFFIX}")):
        raise InputError(f"no records in {folder}: run samtune results --profile {profile} first")
    index = build_report(profile)
    typer.echo(f"report: {index}")
    if single_file:
        typer.echo(f"in one file: {share.single_file(index.parent)}")
    if pdf:
        typer.echo(f"to print: {share.pdf(index.parent)}")


def main() -> None:
    """Entry point of the command `samtune`."""
    warnings.formatwarning = lambda message, *_, **__: f"samtune: warning: {message}\n"  # no line of source code
    sys.exit(app())


if __name__ == "__main__":
    main()
