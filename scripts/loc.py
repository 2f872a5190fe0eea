"""Lines of code per package, and the longest files: `python scripts/loc.py`.

A line of code is one that holds more than a comment, a docstring or nothing.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "pd", "prefill_node", "decode_node", "kvstore", "kernels", "scripts", "tests",
)  # fmt: skip
NUM_LONGEST = 10
SILENT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(text: str) -> int:
    """Lines on which a token stands that does something."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - _docstring_lines(text))


def _docstring_lines(text: str) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def main() -> None:
    rows: list[tuple[str, int, int, int]] = []
    longest: list[tuple[int, str]] = []
    for package in PACKAGES:
        by_folder: dict[str, list[Path]] = {}
        for path in sorted((ROOT / package).glob("**/*.py")):
            by_folder.setdefault(str(path.parent.relative_to(ROOT)), []).append(path)
        for folder, paths in by_folder.items():
            texts = [path.read_text(encoding="utf-8") for path in paths]
            total = sum(len(text.splitlines()) for text in texts)
            rows.append((folder, len(paths), sum(map(code_lines, texts)), total))
            for path, text in zip(paths, texts, strict=True):
                longest.append((len(text.splitlines()), str(path.relative_to(ROOT))))
    print(f"{'package':24}{'files':>7}{'code':>8}{'lines':>8}")
    for folder, files, code, total in rows:
        print(f"{folder:24}{files:7}{code:8}{total:8}")
    product = [row for row in rows if not row[0].startswith(("tests", "scripts"))]
    for title, chosen in (("all", rows), ("without scripts, tests", product)):
        sums = [sum(row[i] for row in chosen) for i in (1, 2, 3)]
        print(f"{title:24}{sums[0]:7}{sums[1]:8}{sums[2]:8}")
    print("\nlongest files")
    for lines, path in sorted(longest, reverse=True)[:NUM_LONGEST]:
        print(f"{lines:6}  {path}")


if __name__ == "__main__":
    main()
