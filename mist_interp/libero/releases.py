"""When does the robot let go of something, and where does that end up?

An object that was held (``contacts.py``) and is not any more has been let go, by an opening hand or by slipping; which,
the executed actions tell. It has *landed* on the first thing of the scene that it touches from then on, which may be
what it stands on already. Caught again before that, it was not let go.

An object that was picked but never lifted off what it stood on (its contacts with that never broke) cannot be dropped:
``lifted`` is False. Whether it landed at its goal is judged by bodies, like all contacts: a region of a table stands
for the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Release:
    """One object that was let go.

    Attributes:
        step: control step in which it was last held, 0 = the first after settling.
        body: root body of the object.
        lifted: whether it had been lifted off what it stood on when it was grasped.
        landed_step: control step of its first contact with the scene; None if there was none until the episode's end.
        landed_on: what it touched then.
        at_goal: whether that is where the goal wants it; None if the goal says nothing of this object, or unknown.
    """

    step: int
    body: str
    lifted: bool
    landed_step: int | None = None
    landed_on: str | None = None
    at_goal: bool | None = None


@dataclass
class ReleaseLog:
    """The releases of an episode; part of what a fork saves.

    Attributes:
        landed: releases that ended somewhere.
        falling: those still in the air, by group of the object.
    """

    landed: tuple[Release, ...] = ()
    falling: dict[int, Release] | None = None

    def let_go(self, thing: int, release: Release) -> None:
        """Note that an object is not held any more."""
        self.falling = {**(self.falling or {}), thing: release}

    def catch(self, things: Iterable[int]) -> None:
        """Forget the falls of objects that are held (again)."""
        if self.falling:
            self.falling = {thing: release for thing, release in self.falling.items() if thing not in set(things)}

    def land(self, thing: int, step: int, on: str, at_goal: bool | None) -> None:
        """Note what a falling object touches first."""
        release = (self.falling or {})[thing]
        self.falling = {other: kept for other, kept in (self.falling or {}).items() if other != thing}
        self.landed = (*self.landed, replace(release, landed_step=step, landed_on=on, at_goal=at_goal))

    def all(self) -> tuple[Release, ...]:
        """All releases, by time."""
        return tuple(sorted((*self.landed, *(self.falling or {}).values()), key=lambda each: (each.step, each.body)))
