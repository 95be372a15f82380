"""``doctor``: is the remote fit for runs, and what is to be done if not.

Owns: its lines, its JSON fields, and the exit code of the worst finding. Does not own: what is tried
(``stores.checkup``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from artifactsync.cli.session import global_options, pass_session
from artifactsync.cli.terminal import printable
from artifactsync.errors import ArtifactSyncError, redact_url

if TYPE_CHECKING:
    from artifactsync.cli.session import Session
    from artifactsync.stores.checkup import Finding

_STYLES = {"ok": "good", "warn": "warning", "fail": "error"}


@click.command(
    "doctor",
    short_help="Check the remote; say what to fix.",
    epilog="""\b
Examples:
  artifactsync doctor --remote s3://bucket/runs
  artifactsync doctor --json | jq '.checks[] | select(.verdict != "ok")'

Exit code 0 if runs can be kept there, warnings or not; else that of what
failed: 6 credentials or permission,
2 configuration.
""",
)
@global_options
@click.pass_context
@pass_session
def command(session: Session, context: click.Context) -> None:
    """Check credentials, permissions, conditional writes, the clock, leftovers; one line each.

    A few scratch objects are written to the remote, and deleted again.
    """
    from artifactsync.stores import open_store
    from artifactsync.stores.checkup import examine, failed

    remote = session.remote
    findings: list[Finding] = []
    try:
        store = open_store(remote, session.storage_options)
    except ArtifactSyncError as error:
        findings.append(failed("credentials" if error.exit_code == 6 else "configuration", error))  # noqa: PLR2004 - CONTRACT §5
        _show(session, findings[-1])
    else:
        try:
            for finding in examine(store):
                findings.append(finding)
                _show(session, finding)
        finally:
            store.close()
    code = max((finding.exit_code for finding in findings), default=0)
    if session.is_json:
        worst = next((word for word in ("fail", "warn") if word in {f.verdict for f in findings}), "ok")
        checks = [finding.to_json() for finding in findings]
        session.screen.json({"remote": redact_url(remote), "ok": code == 0, "verdict": worst, "checks": checks})
    context.exit(code)


def _show(session: Session, finding: Finding) -> None:
    if session.is_json or (session.screen.is_quiet and finding.verdict == "ok"):
        return
    session.screen.text(
        printable(f"{finding.verdict:<4}  {finding.check:<13}  {finding.message}"), _STYLES[finding.verdict]
    )
    if finding.hint and finding.verdict != "ok":
        session.screen.text(printable(f"{'':<21}do: {finding.hint}"))
