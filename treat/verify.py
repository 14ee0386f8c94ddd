"""Any LoRA file in; its faults, and what each downstream reader would make of it, out.

    diffdoctor verify lora.safetensors --base black-forest-labs/FLUX.1-schnell

Cheapest first: the header, names and shapes, alphas and metadata, hashes, the numbers, the base.
Exit code 0 sound, 1 where a reader in `--readers` loads it wrongly, 2 where nothing can read it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

import core.config
from core.errors import UserError
from core.run import plain
from core.storage import write_atomic
from treat.lora_files.base import Base, against
from treat.lora_files.checks import checks
from treat.lora_files.content import Content
from treat.lora_files.faults import HEADER, Finding, gathered
from treat.lora_files.file import Damage, check_readable, read_lora_file
from treat.lora_files.names import NAMINGS, WEIGHTS
from treat.lora_files.readers import READERS, SOURCES, Verdict, keeps_strays, verdict
from treat.lora_files.values import hashes, values

Reader = Literal["diffusers", "ComfyUI", "Forge", "sd-scripts"]
USUAL: tuple[Reader, ...] = ("diffusers", "ComfyUI", "Forge")
"""sd-scripts reads kohya's names only, and none that a FLUX adapter of `diffdoctor export` has."""
NOT_LORAS = {
    "model_index.json": "a whole pipeline (look at the LoRA, before it is merged)",
    "run.json": "a run (`diffdoctor export` writes its LoRA)",
    "manifest.json": "a checkpoint (`diffdoctor export` writes its LoRA)",
    "detector.json": "a detector (`diffdoctor detector evaluate` measures it)",
}
"""What other folders of safetensors files hold, by a file in them."""
WIDTH = 100
BROKEN = ("rank", "transposed", "transposed-A", "transposed-B", "sides", "empty", "not-finite",
          "metadata-dora")  # fmt: skip
"""Where these stand, no strength is told of the readers that they mislead."""


class Config(core.config.Config):
    """Say what is wrong with a LoRA file, and what each downstream reader makes of it."""

    path: Annotated[Path, tyro.conf.Positional, core.config.placed("FILE")]
    """A .safetensors file, or a folder of them: one of its files has to serve each reader."""
    base: str | None = None
    """Pipeline folder or Hub id that it is for: names and sides are held against it."""
    readers: tuple[Reader, ...] = Field(USUAL, min_length=1)
    """Whose troubles make the exit code 1."""
    json_file: core.config.JsonFile = None
    """Also write what was found to this file."""


class Report(NamedTuple):
    """All that was found of one file."""

    path: Path
    content: Content | None
    """None where the header does not hold."""
    findings: list[Finding]
    verdicts: list[Verdict]


def main(config: Config) -> int | None:
    """Look, print, and tell by the exit code."""
    base = Base(config.base) if config.base else None
    reports = [examine(path, base, config.readers) for path in files(config.path)]
    console = Console(width=max(WIDTH, Console().width))
    for report in reports:
        show(console, report)
    if config.json_file is not None:
        text = json.dumps(plain([as_dict(report) for report in reports]), indent=2) + "\n"
        write_atomic(config.json_file, text.encode())
    return code(reports, config.readers)


def files(path: Path) -> list[Path]:
    """The file, or those of the folder; raises `UserError` where there is none."""
    path = path.expanduser()
    for name, what in NOT_LORAS.items():
        if (path / name).is_file() and not (path / WEIGHTS).is_file():
            raise UserError(f"{path} is {what}, and this looks at LoRA files.")
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not found or not all(one.is_file() for one in found):
        raise UserError(f"{path} is no .safetensors file and holds none: check the path.")
    for one in found:
        check_readable(one)
    return found


def examine(path: Path, base: Base | None = None, readers: Sequence[str] = USUAL) -> Report:
    """The whole ladder; where the header does not hold, no further.

    That a reader passes over modules is a fault where it is one of `readers`.
    """
    try:
        file = read_lora_file(path)
    except Damage as damage:
        return Report(path, None, [Finding(damage.code, (damage.where,), damage.what)], [])
    content = Content(file)
    found = [*checks(content), *hashes(file), *values(content)]
    found += against(content, base) if base else []
    findings = gathered(found)
    verdicts = [verdict(reader, content, refusal(reader, findings, content)) for reader in READERS]
    misled = {reader for one in findings if one.code in BROKEN for reader in one.wrong}
    verdicts = [one._replace(strengths=()) if one.reader in misled else one for one in verdicts]
    partly = [one for one in verdicts if one.dropped and one.reader in readers and not one.refuses]
    if partly and not explained(findings):
        places = tuple(f"{one.reader}: {one.dropped} modules" for one in partly)
        readers = tuple(one.reader for one in partly)
        findings.append(Finding("dropped", places, readers=readers))
    return Report(path, content, findings, verdicts)


def refusal(reader: str, findings: list[Finding], content: Content) -> str:
    """The finding for which a reader raises."""
    kept = ("unknown-name", "base-weight") if keeps_strays(reader, content) else ()
    codes = (one.code for one in findings if reader in one.fault.refuse and one.code not in kept)
    return next(codes, "")


def explained(findings: list[Finding]) -> bool:
    """Whether a naming that nobody reads says already why modules are passed over."""
    return any(
        one.code in ("prefix", "helper", "mixed", "no-module", "adapter-name") for one in findings
    )


def code(reports: list[Report], readers: tuple[str, ...]) -> int:
    """2 where no file can be read, 1 where a reader is misled, else 0.

    A reader that one file serves whole may pass over the modules of another.
    """
    if all(report.content is None for report in reports):
        return 2
    served = {one.reader for report in reports for one in report.verdicts if one.whole}
    for report in reports:
        for finding in report.findings:
            hurt = set(finding.wrong) & set(readers)
            if hurt - (served if finding.code == "dropped" else set()):
                return 1
    return 0


# Shown


def show(console: Console, report: Report) -> None:
    """The findings, then the readers."""
    content = report.content
    console.print(shown(str(report.path)), style="bold")
    if content is not None:
        title = NAMINGS[content.naming].title if content.naming in NAMINGS else content.naming
        ranks = ", ".join(map(str, sorted(content.ranks))) or "none"
        texts = f", text encoders {len(content.texts)} (not checked)" if content.texts else ""
        said = f"{len(content.denoiser)} modules, rank {ranks}{texts}"
        console.print(shown(f"{title}; family {content.family}; {said}"))
    if report.findings:
        console.print(findings_table(report.findings))
    else:
        console.print("no findings")
    if report.verdicts:
        console.print(readers_table(report.verdicts))


def findings_table(findings: list[Finding]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("severity", "what", "where", "cure"):
        table.add_column(title, overflow="fold")
    for one in findings:
        what = one.fault.what + (f" ({one.detail})" if one.detail else "")
        cells = one.severity, f"{one.code}: {what}", where(one.places), one.fault.cure
        table.add_row(*map(shown, cells))
    return table


def shown(text: str) -> Text:
    """Strangers' words: no markup, nothing that a terminal would obey."""
    return Text("".join(one if one.isprintable() else "?" for one in text))


def where(places: tuple[str, ...]) -> str:
    short = places[0][:120]
    return short if len(places) == 1 else f"{short} and {len(places) - 1} more"


def readers_table(verdicts: list[Verdict]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("reader", "loads", "drops", "strength", "rules from"):
        table.add_column(title, overflow="fold")
    for one in verdicts:
        strength = strengths(one.strengths)
        if one.off:
            strength += f", in {one.off} modules not what the file says ({strengths(one.said)})"
        loads = f"refuses ({one.refuses})" if one.refuses else str(one.loaded)
        table.add_row(one.reader, loads, str(one.dropped), strength, SOURCES[one.reader])
    return table


def strengths(found: tuple[float, ...]) -> str:
    if not found:
        return "-"
    return f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


def as_dict(report: Report) -> dict[str, Any]:
    """As JSON."""
    content = report.content
    return {
        "file": report.path.name,
        "readable": not any(one.code in HEADER for one in report.findings),
        "naming": content.naming if content else None,
        "family": content.family if content else None,
        "modules": len(content.denoiser) if content else 0,
        "findings": [
            {
                "code": one.code,
                "severity": one.severity,
                "what": one.fault.what,
                "detail": one.detail,
                "where": list(one.places[:20]),
                "places": len(one.places),
                "cure": one.fault.cure,
                "wrong": list(one.wrong),
            }
            for one in report.findings
        ],
        "readers": {one.reader: one._asdict() | {"whole": one.whole} for one in report.verdicts},
    }
