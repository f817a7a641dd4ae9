"""How tests start victims, ask them, and run ckpt. Everything that is started here is ended here, by its own pid."""

from tests.harness.ckpt import Ckpt, Outcome
from tests.harness.soak import SOAK, did, progress, time_is_up, times
from tests.harness.victim import WORKLOADS, Skipped, Victim, VictimError, build

__all__ = ["SOAK", "WORKLOADS", "Ckpt", "Outcome", "Skipped", "Victim", "VictimError", "build", "did", "progress", "time_is_up", "times"]
