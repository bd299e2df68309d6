"""What a wheel must carry beside the code."""

from __future__ import annotations

import configparser
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
LIB = CHECKOUT / "lib"


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(CHECKOUT / "setup.cfg")
    return parser


def test_every_file_beside_the_code_is_package_data() -> None:
    packed = set()
    for package, patterns in setup_cfg()["options.package_data"].items():
        folder = LIB.joinpath(*package.split("."))
        packed |= {path for pattern in patterns.replace("\n", ",").split(",") for path in folder.glob(pattern.strip())}
    others = {path for path in (LIB / "dlm").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others <= packed


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for path in (LIB / "dlm").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_every_script_of_bin_is_a_console_script() -> None:
    declared = setup_cfg()["options.entry_points"]["console_scripts"]
    names = {line.split("=")[0].strip() for line in declared.strip().splitlines()}
    assert names == {path.name for path in (CHECKOUT / "bin").iterdir()}
