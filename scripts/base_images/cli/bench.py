"""The task that compares upstream's own image with ours."""

from __future__ import annotations

from invoke.context import Context

from base_images import settings, variants
from base_images.cli.front_door import command, for_each_variant
from base_images.cli.options import SOURCE_HELP, caller_path, parse_origin
from base_images.errors import UsageError
from base_images.settings import ROOT

BENCH_DIRECTORY = "build/bench"


@command(
    iterable=["variant", "arch"],
    help={
        **SOURCE_HELP,
        "variant": "which image; may be given several times; default: cpu",
        "against": "what ours is compared with: upstream, llama.cpp's own `.devops` of the same source",
        "only": "parts, such as cold,header; default: all those of docs/benchmarks/README.md",
        "rounds": "measure each part so many times; the same command goes on where the last one stopped; default: 3",
        "to": "the source tree of the bump; default: b11312, fetched",
        "arch": "compile the backend only for this device architecture, for both; may be given several times",
        "record": f"directory of the measurements and reports; default: {BENCH_DIRECTORY}",
        "json": "print the report as JSON",
    },
)
def bench(
    _: Context,
    variant: list[str],
    arch: list[str],
    against: str = "upstream",
    only: str = "",
    rounds: int = 3,
    to: str = "",
    source: str = "",
    origin: str = "auto",
    record: str = "",
    json: bool = False,
) -> None:
    """Compares upstream's own image with ours.

    Builds both from the same source on the same bases, in turn, and starts both.

    Example: invoke bench --variant cpu --only cold,nothing --rounds 1
    """
    from base_images.bench import builds

    if against != "upstream":
        raise UsageError(f"There is nothing called {against!r} to compare with: --against upstream is what there is.")
    try:
        parts = builds.parts_of(only)
    except ValueError as error:
        raise UsageError(f"There is no such part ({error}): see `invoke --help bench`.") from error
    if rounds < 1:
        raise UsageError("--rounds counts from 1.")
    from base_images.adapters import engine, files, repository
    from base_images.bench import measured, page, report, run
    from base_images.bench.cases import NEXT, Part
    from base_images.build import local
    from base_images.build import source as sources
    from base_images.cli import views

    repository.open_clone(ROOT)  # without a version, nothing is to be fetched or built
    chosen = settings.load(ROOT)
    wanted = parse_origin(origin)
    directory = caller_path(record) or ROOT / BENCH_DIRECTORY
    connected = engine.connect()
    how = views.mode(quiet=json)

    def compare(compared: variants.Variant) -> None:
        place = directory / compared.name
        with views.Display(how, f"compare {compared.name}") as display:
            trees = []
            for pin, path, root in ((chosen.pin, source, ROOT), (NEXT, to, directory)):
                root.mkdir(parents=True, exist_ok=True)
                trees.append(
                    sources.resolve(pin, path=caller_path(path), origin=wanted, root=root, listener=display.progress)
                )
            if trees[0].commit == trees[1].commit and {Part.BUMP, Part.SIZE} & {*parts}:
                raise UsageError(
                    f"Both trees are llama.cpp {trees[0].tag}, so there is no bump to measure: name another tree with "
                    "--to, or leave bump and size out by --only."
                )
            first, later = (
                local.prepare(
                    connected,
                    compared,
                    settings=chosen,
                    root=ROOT,
                    source=tree,
                    wanted=wanted,
                    listener=display.progress,
                    architectures=arch,
                )
                for tree in trees
            )
            for notice in dict.fromkeys((*trees[0].notices, *trees[1].notices, *first.notices)):
                display.notice(notice)
            kept = measured.Kept(place, run.about(first, later, ROOT))
            say = (lambda _: None) if json else views.say
            run.run(
                builds.Bench(
                    engine=connected,
                    root=ROOT,
                    kept=kept,
                    first=first,
                    later=later,
                    on_event=display.event,
                    say=say,
                ),
                parts,
                rounds,
            )
        made = report.as_json(kept.about, run.machine(connected), kept.measurements)
        files.write_json(place / "report.json", made)
        files.write(place / "report.html", page.as_html(made))
        if json:
            views.print_json(made)
            return
        views.print_table(f"{compared.name}, ours and upstream's", report.COLUMNS, report.table(made["results"]))
        views.say(f"{place}/report.html has the pictures, report.json the numbers")

    for_each_variant([variants.find(name) for name in variant or ["cpu"]], compare)
