"""Which choice of auth.mode fits which addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachesrv.config import AuthSettings, ServerSettings, Settings
from cachesrv.server.exposure import is_local, loaded, renewed, restart_needed, settled
from cachesrv.settings_source import SettingsInvalid


def made(*listen: str, **auth: object) -> Settings:
    return Settings(server=ServerSettings(listen=list(listen)), auth=AuthSettings.model_validate(auth))


def test_none_is_the_default_while_every_address_is_local() -> None:
    assert settled(made("127.0.0.1:0", "[::1]:0", "unix:/run/x")).auth.mode == "none"


@pytest.mark.parametrize("listen", [["0.0.0.0:1"], ["127.0.0.1:1", "10.0.0.1:1"], ["unix:/x", "[::]:1"]])
def test_any_other_address_needs_a_choice(listen: list[str]) -> None:
    with pytest.raises(
        SettingsInvalid, match=r"auth\.mode: must be chosen.*'jwks'.*'static-key'.*'shared-secret'.*'none'"
    ):
        settled(made(*listen))
    assert settled(made(*listen, mode="none")).auth.mode == "none"
    assert settled(made(*listen, mode="shared-secret", shared_secret="x" * 40)).auth.mode == "shared-secret"


def test_jwks_off_loopback_needs_an_allow_list() -> None:
    with pytest.raises(SettingsInvalid, match=r"auth\.allow_owners"):
        settled(made("0.0.0.0:1", mode="jwks"))
    settled(made("0.0.0.0:1", mode="jwks", allow_owners=["me"]))
    settled(made("127.0.0.1:1", mode="jwks"))


def test_what_a_reload_cannot_change_is_named() -> None:
    assert restart_needed(made("127.0.0.1:1"), made("127.0.0.1:2")) == ["server.listen"]
    assert restart_needed(made("127.0.0.1:1"), made("127.0.0.1:1", mode="none")) == []
    assert is_local(made("127.0.0.1:1"))


def test_a_reload_is_judged_by_the_addresses_that_are_bound() -> None:
    bound = settled(made("0.0.0.0:1", mode="shared-secret", shared_secret="x" * 40))
    with pytest.raises(SettingsInvalid, match=r"auth\.mode: must be chosen, because 0\.0\.0\.0:1"):
        renewed(bound, made("127.0.0.1:1"))
    with pytest.raises(SettingsInvalid, match=r"auth\.allow_owners"):
        renewed(bound, made("127.0.0.1:1", mode="jwks"))
    kept = renewed(bound, made("127.0.0.1:1", mode="jwks", allow_owners=["me"]))
    assert (kept.server.listen, kept.auth.mode) == (["0.0.0.0:1"], "jwks")
    local = settled(made("127.0.0.1:1"))
    assert renewed(local, made("0.0.0.0:1")).server.listen == ["127.0.0.1:1"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            '[auth]\nmode = "shared-secret"\nshared_secret = "short"\n',
            ":3: auth.shared_secret: mode shared-secret needs",
        ),
        ('[server]\n\nbase_url = "http://a b/"\n', ":3: server.base_url: not a"),
        ('[actions]\nupstream = "https://elsewhere.example"\n', ":2: actions.upstream: elsewhere.example is not in"),
    ],
)
def test_settings_that_no_worker_could_live_with_are_named_with_their_line(
    tmp_path: Path, text: str, named: str
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(SettingsInvalid) as refused:
        loaded(file, {"HOME": str(tmp_path)})
    assert str(refused.value).startswith(f"{file}{named}")
