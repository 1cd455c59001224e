"""A lab that lives: its states, requests that the world carries out, snapshots, and a stream of events.

session    the states, and what may be done in each
live       what stands while the lab is up
asking     what a request is
requests   what can be asked, a class each
captures   frames for other processes
policy     what VFs may do, changed while they do it
desk       where requests wait for the world
snapshot   what everybody has counted
events     what happened; stream: how it is asked for
looking    all that has come since the last look, in one answer
quarantine VFs that stay stopped, whoever holds the lab
"""

from virtfn.api.session.asking import Request
from virtfn.api.session.captures import ReadCard, StartCapture
from virtfn.api.session.events import (
    AddressRefused,
    Event,
    Events,
    FaultsRecorded,
    GuestBooted,
    GuestConnected,
    GuestDisconnected,
    Reading,
    StateChanged,
    VfsRefused,
    WorkDone,
)
from virtfn.api.session.links import SetLinks, ShowLinks
from virtfn.api.session.policy import Clauses, set_policies
from virtfn.api.session.requests import ExplainIommu, ReadEvents, ReadSnapshot, RunInGuest, ShowIommu
from virtfn.api.session.session import Session, State
from virtfn.api.session.snapshot import Snapshot

__all__ = [
    "AddressRefused",
    "Clauses",
    "Event",
    "Events",
    "ExplainIommu",
    "FaultsRecorded",
    "GuestBooted",
    "GuestConnected",
    "GuestDisconnected",
    "ReadCard",
    "ReadEvents",
    "ReadSnapshot",
    "Reading",
    "Request",
    "RunInGuest",
    "Session",
    "SetLinks",
    "ShowIommu",
    "ShowLinks",
    "Snapshot",
    "StartCapture",
    "State",
    "StateChanged",
    "VfsRefused",
    "WorkDone",
    "set_policies",
]
