"""What this kernel and these rights allow, what follows, and what to do about it."""

from __future__ import annotations

from ckpt.cli import output
from ckpt.cli.options import JsonOption


def command(json: JsonOption = False) -> None:
    from ckpt.ops.doctor import examine, machine

    tracker, findings = examine()
    if json:
        output.print_json({"tracker": tracker, "machine": machine(), "findings": list(findings)})
        return
    output.heading("ckpt doctor", f"Linux {machine()['kernel']}, {machine()['machine']}; --tracker auto takes {tracker}")
    for finding in findings:
        sign, style = ("ok", "green") if finding.works else ("--", "yellow")
        output.say(f"{sign}  {finding.name}: {finding.detail}", style=style)
        if finding.follows:
            output.say(f"      without it: {finding.follows}")
        if finding.remedy:
            output.say(f"      remedy: {finding.remedy}")
