"""Compares losses over several seeds, each with its best learning rate, and writes a model card for each of them.

    python -m baselines --train_file mine.csv --minutes 30                                   # your own texts, see own_data.py
    python -m baselines sweep baselines/recipes/bbc_longtail_frozen.yaml
    python -m baselines sweep baselines/recipes/reuters90_frozen.yaml --dataset_name FOLDER  # flags override the recipe
    python -m baselines report outputs/baselines/bbc_longtail_frozen/results.jsonl           # of a sweep, finished or not
    python -m baselines report outputs/baselines/*_frozen/results.jsonl                      # an overview of several
    python -m baselines verify baselines/results/bbc_longtail_frozen/focal/README.md         # one seed of a card, again
    python -m baselines cell --dataset_name bbc_longtail --seed 1 --output_dir outputs/cell  # a training and its test

A recipe names the data, the arms and a small grid. For each arm, every point of the grid is trained with the first seed
(or several, `grid_seeds`); the one that is best on the validation split is also trained with the other seeds, and each
of these models predicts the test split once. Every finished cell is a line of `results.jsonl`, with everything needed to reproduce it. A sweep
that was stopped resumes where it was, and several sweeps can share the work in one folder;
`accelerate launch -m baselines sweep ...` runs each cell on several processes.

It also writes `results.md` with the tables, `results.png`, and a model card with pictures for each arm.
"""

# Each command imports what it needs: that takes seconds, and --help should not wait for it.

import gc
import json
import sys
import traceback
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path


def sweep(args: Namespace, flags: list[str]) -> None:
    from accelerate import PartialState

    from baselines.cards import write_cards
    from baselines.recipe import Recipe
    from baselines.records import of_chosen_settings
    from baselines.sweep import Sweep

    folder = args.output_dir or Path("outputs/baselines", args.recipe.stem)
    whole = Recipe.load(args.recipe).with_flags(pairs(flags))
    recipe = whole.restricted_to(args.arms, args.seeds)
    if PartialState().is_main_process and recipe.takes:
        print(f"{recipe.title}: takes {recipe.takes}. Finished cells are kept, and a stopped sweep can be resumed.")
    running = Sweep(recipe, folder)
    running.run()
    if PartialState().is_main_process:
        records = whole.in_order(of_chosen_settings(running.comparable_records()))
        baseline = next(record["arm"] for record in records if record["stage"] == "test")
        tables = tables_and_picture(records, baseline, folder / "results.png")
        (folder / "results.md").write_text(tables)
        cards = [] if recipe.along else write_cards(recipe, records, folder)
        print(tables, "Pictures and model cards:", folder / "results.png", *cards, sep="\n")
    end_processes()


def tables_and_picture(records: list[dict], baseline: str, picture: Path) -> str:
    from baselines.curves import curve_tables, draw_curves
    from baselines.decisions import decided_at, other_decision, with_posterior
    from baselines.report import difference_table, draw, report_table
    from hf_focal.settings import OPERATING_POINTS

    if any("along" in record for record in records):
        draw_curves(records, picture)
        return f"{curve_tables(records)}\n"
    arms, point = [*dict.fromkeys(record["arm"] for record in records)], other_decision(records)
    shown = [*with_posterior(records), *decided_at(records, point, [baseline])]
    draw(shown, baseline, picture)
    tables = [report_table(shown, baseline), difference_table(shown, baseline)]
    others = [record for any_point in OPERATING_POINTS for record in decided_at(records, any_point, arms)]
    if others:
        tables.append(report_table([*with_posterior(records), *others], baseline))
    decided = decided_at(records, point, arms)
    if len({record["arm"] for record in decided}) > 1:
        tables.append(difference_table(decided, f"{baseline}, at {point}"))
    return "\n\n".join(tables) + "\n"


def report(args: Namespace, flags: list[str]) -> None:
    from baselines.records import of_chosen_settings, read_records

    records_by_file = {file: read_records(file) for file in args.results}
    try:
        _report(args, {file: of_chosen_settings(records) for file, records in records_by_file.items()})
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{', '.join(map(str, args.results))}: a record is not one that a sweep writes: {error!r}"
        ) from error


def _report(args: Namespace, records_by_file: dict[Path, list[dict]]) -> None:
    from baselines.overview import compare, draw_overview, overview_table

    first = args.results[0]
    if len(records_by_file) == 1:
        picture = first.with_name("results.png")
        print(tables_and_picture(records_by_file[first], args.baseline, picture))
    else:
        picture = first.parents[1] / "overview.png"
        table = compare({file.parent.name: records for file, records in records_by_file.items()})
        print(overview_table(table))
        draw_overview(table, picture)
    print(f"\nThe same, as a picture: {picture}")


def verify(args: Namespace, flags: list[str]) -> None:
    from baselines.verification import verify_card

    sys.exit(verify_card(args.card, args.seed))


def cell(args: Namespace, flags: list[str]) -> None:
    from baselines.cell import Cell, parse_cell

    flags = ["--output_dir", "outputs/cell", *flags]
    record = Cell(flags, Path(parse_cell(flags)[-1].output_dir)).test()
    print(json.dumps(record["metrics"], indent=2))
    end_processes()


def end_processes() -> None:
    """Processes on CPU may abort at exit if their process group still exists (pytorch issue 190489)."""
    from accelerate import PartialState

    gc.collect()
    PartialState().destroy_process_group()


def pairs(flags: list[str]) -> dict[str, str]:
    """`--name value` or `--name=value` as a mapping."""
    tokens = [part for flag in flags for part in (flag.split("=", 1) if flag.startswith("--") else [flag])]
    names, values = tokens[::2], tokens[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        raise ValueError(f"flags: expected pairs of --name and value, but got {' '.join(flags)}")
    return {name.removeprefix("--"): value for name, value in zip(names, values)}


def main() -> None:
    parser = ArgumentParser(
        prog="python -m baselines",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("sweep", help="run a recipe; further flags override its own", allow_abbrev=False)
    command.add_argument("recipe", type=Path, help="a yaml file")
    command.add_argument("--arms", nargs="+", help="only these arms of the recipe, the baseline first")
    command.add_argument("--seeds", type=int, nargs="+", help="seeds to use instead of those of the recipe")
    command.add_argument("--output_dir", type=Path, help="by default outputs/baselines/ plus the name of the recipe")
    command.set_defaults(run=sweep, takes_flags=True)

    command = commands.add_parser("report", help="tables and picture of a results.jsonl", allow_abbrev=False)
    command.add_argument(
        "results",
        type=Path,
        nargs="+",
        help="results.jsonl of a sweep, which may still be running; for several, the differences to cross entropy",
    )
    command.add_argument("--baseline", default="cross entropy", help="the arm that the others are compared with")
    command.set_defaults(run=report, takes_flags=False)

    command = commands.add_parser("verify", help="run one seed of a card again", allow_abbrev=False)
    command.add_argument(
        "card",
        type=Path,
        help="a README.md; the exit status is 0 if all numbers are the same, 3 if they are within the tolerance, 1 if one "
        "differs, 4 if nothing can be compared, 2 if the card is rejected",
    )
    command.add_argument("--seed", type=int, help="by default the card's first seed")
    command.set_defaults(run=verify, takes_flags=False)

    command = commands.add_parser("cell", help="one training and its test", add_help=False, allow_abbrev=False)
    command.set_defaults(run=cell, takes_flags=True)

    if sys.argv[1:2] == ["--verify"]:
        sys.argv[1] = "verify"
    if sys.argv[1:] and sys.argv[1].startswith("--") and sys.argv[1] != "--help":
        from baselines.own_data import compare

        compare(sys.argv[1:])
        end_processes()
        return
    args, flags = parser.parse_known_args()
    if flags and not args.takes_flags:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    if args.takes_flags:
        args.run(args, flags)
        return
    from baselines.plain_streams import plain_streams

    with plain_streams():  # the card or results may be untrusted
        args.run(args, flags)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:  # errors in a recipe, a card or a flag, as one line
        from hf_focal.model_card import one_line

        print(f"python -m baselines: error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    except Exception:  # not with status 1, which is the verdict "different"
        from hf_focal.model_card import one_line

        print(*map(one_line, traceback.format_exc().splitlines()), sep="\n", file=sys.stderr)
        sys.exit(2)
