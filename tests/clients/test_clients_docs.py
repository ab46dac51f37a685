"""The pages' copy-paste blocks, run as they stand. Only the address differs: the test's server instead of port 8700.

A fence ``sh test=NAME`` is run by bash in an empty folder, into which the page's ``LANG file=NAME`` fences go.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import RequireClient
from tests.server_process import ServerProcess

PAGES = Path(__file__).parents[2] / "docs" / "clients"
_FENCE = re.compile(r"^```(\w+) (file|test)=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    name: str
    script: str

    def files(self) -> dict[str, str]:
        return {found[3]: found[4] for found in _FENCE.finditer(self.page.read_text()) if found[2] == "file"}


BLOCKS = {
    found[3]: Block(page, found[3], found[4])
    for page in sorted(PAGES.glob("*.md"))
    for found in _FENCE.finditer(page.read_text())
    if found[2] == "test"
}


def _sccache_told(output: str) -> bool:
    """--show-stats and --stop-server both print the figures of one server's life."""
    hits = re.findall(r"^Cache hits\s+(\d+)$", output, re.MULTILINE)
    misses = re.findall(r"^Cache misses\s+(\d+)$", output, re.MULTILINE)
    return (hits, misses) == (["0", "0", "1", "1"], ["1", "1", "0", "0"])


EXPECTED: dict[str, Callable[[str], bool]] = {
    "npm-package": lambda output: output.index("nothing there yet") < output.index("restored try-1"),
    "sccache": _sccache_told,
    "sccache-guarded": lambda output: "CC=sccache gcc" in output,
    "opendal": lambda output: "hello" in output.splitlines(),
}
PROGRAMS = {"npm-package": ["npm", "node"], "sccache": ["gcc"], "sccache-guarded": ["curl"]}


def test_every_marked_block_has_an_expectation() -> None:
    assert set(BLOCKS) == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_block(server: ServerProcess, tmp_path: Path, require_client: RequireClient, name: str) -> None:
    block = BLOCKS[name]
    for program in PROGRAMS.get(name, []):
        require_client(program, shutil.which(program) is not None)
    folder = tmp_path / "try"
    folder.mkdir()
    for file, content in block.files().items():
        (folder / file).write_text(content)
    script = block.script.replace("http://127.0.0.1:8700", server.url)
    assert "8700" not in script
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": os.environ.get("HOME", str(folder)),
        "TMPDIR": str(tmp_path),
        "SCCACHE_SERVER_UDS": str(tmp_path / "sccache.sock"),
        "npm_config_prefer_offline": "true",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'{script}\necho "CC=${{CC-}}"'],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert EXPECTED[name](done.stdout), done.stdout + done.stderr


def test_no_link_between_pages_is_dead() -> None:
    root = PAGES.parents[1]
    for page in [root / "README.md", *PAGES.glob("*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
            aimed = (page.parent / target).resolve() if target else page
            assert aimed.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", aimed.read_text(), re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in slugs, f"{page.name}: {target}#{anchor}"
