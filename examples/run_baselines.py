"""Losses compared over several seeds, each with the learning rate that suits it, and a model card for each of them.

    python run_baselines.py --config baselines/bbc_longtail.yaml
    python run_baselines.py --config baselines/reuters90.yaml --dataset_name FOLDER    # other flags win over the recipe
    python run_baselines.py --verify baselines/bbc_longtail/focal/README.md            # one seed of a card, run again

A recipe names the data, the arms and a small grid. For each arm, every point of the grid is trained with the first seed;
the one that is best on the validation split is trained with the other seeds too, and each of these models predicts the
test split once. Every finished cell is a line of `results.jsonl`, with all that made it. A sweep that was stopped goes on
where it was, and several may share the work of one folder; `accelerate launch` runs each cell on several processes.

Beside it: `results.md` with the tables, `results.png`, and a model card with pictures for each arm.
"""

import gc
import sys
from argparse import ArgumentParser
from pathlib import Path

from accelerate import PartialState
from baseline_cards import write_cards
from baseline_report import difference_table, draw, report_table
from baseline_sweep import Recipe, Sweep
from baseline_verification import verify_card


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--config", type=Path, help="The recipe, a yaml file.")
    task.add_argument("--verify", type=Path, metavar="CARD", help="A card to run again; exit status 1 if it differs.")
    parser.add_argument("--arms", nargs="+", help="Only these arms of the recipe, the baseline first.")
    parser.add_argument("--seeds", type=int, nargs="+", help="Other seeds than those of the recipe.")
    parser.add_argument("--output_dir", type=Path, help="By default outputs/baselines/ and the name of the recipe.")
    args, flags = parser.parse_known_args()

    if args.verify is not None:
        if flags or args.arms or args.output_dir or len(args.seeds or [0]) > 1:
            raise ValueError("--verify: expected nothing else but --seeds with one seed, as the card has all flags")
        sys.exit(0 if verify_card(args.verify, args.seeds[0] if args.seeds else None) else 1)

    folder = args.output_dir or Path("outputs/baselines", args.config.stem)
    recipe = Recipe.load(args.config).with_flags(_pairs(flags)).restricted_to(args.arms, args.seeds)
    records = Sweep(recipe, folder).run()
    if PartialState().is_main_process:
        baseline = next(iter(recipe.arms))
        tables = f"{report_table(records, baseline)}\n\n{difference_table(records, baseline)}\n"
        (folder / "results.md").write_text(tables)
        draw(records, baseline, folder / "results.png")
        cards = write_cards(recipe, records, folder)
        print(tables, "Pictures and model cards:", folder / "results.png", *cards, sep="\n")


def _pairs(flags: list[str]) -> dict[str, str]:
    """`--name value` or `--name=value` as a mapping."""
    tokens = [part for flag in flags for part in (flag.split("=", 1) if flag.startswith("--") else [flag])]
    names, values = tokens[::2], tokens[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        raise ValueError(f"flags: expected pairs of --name and value, but got {' '.join(flags)}")
    return {name.removeprefix("--"): value for name, value in zip(names, values)}


if __name__ == "__main__":
    main()
    # Processes on CPU may abort at exit if their process group still exists (pytorch issue 190489).
    gc.collect()
    PartialState().destroy_process_group()
