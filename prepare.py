"""Make a data set: text in, files of token ids in data/NAME out.

    python prepare.py shakespeare_char                          a data set that the program knows
    python prepare.py yourfile.txt                              your own text, as data/yourfile
    python prepare.py novels --input a.txt b.txt --tokenizer gpt2 --val 0.05

Then `python train.py --dataset=NAME`, with a configuration of your choice. Known: shakespeare_char
(characters) and shakespeare (GPT-2's byte-pair encoding).
"""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from engine.config import Parser
from engine.errors import UserError, run_script


def main(arguments: Sequence[str]) -> None:
    """Prepare what the command line names."""
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "name", help="a known data set, a text file, or the name of a data set made from --input"
    )
    parser.add_argument(
        "--input", nargs="+", metavar="FILE", help="text files in UTF-8, joined in this order"
    )
    parser.add_argument("--tokenizer", choices=("char", "bytes", "gpt2"), help="default: char")
    parser.add_argument(
        "--val", type=float, default=0.1, help="share of the text kept for validation (default: 0.1)"
    )
    options = parser.parse_args(arguments)
    if not 0 < options.val < 1:
        raise UserError(f"--val is {options.val}; it must be a share between 0 and 1")

    from engine.recipes import RECIPES, prepare_files, prepare_recipe

    if options.input is None and not Path(options.name).is_file():
        if options.name in RECIPES and options.tokenizer not in (None, RECIPES[options.name]):
            raise UserError(
                f"{options.name} is made with the tokenizer {RECIPES[options.name]}; give your own set a name"
            )
        prepare_recipe(options.name, print)
    elif options.input is None:
        prepare_files(
            Path(options.name).stem, [options.name], options.tokenizer or "char", options.val, print
        )
    else:
        prepare_files(options.name, options.input, options.tokenizer or "char", options.val, print)


if __name__ == "__main__":
    run_script(main)
