"""Queues between software and a remapping unit: invalidations that it asks for, pages that devices ask for.

    IQA -> ring of 128-bit descriptors    software moves IQT, the unit follows with IQH
    PQA -> ring of 256-bit page requests  the unit moves PQT, software follows with PQH, and answers by descriptor

Spec: VT-d, queued invalidation interface; page request queue.
"""

from __future__ import annotations

import enum

from virtfn.hw.bits import Field, Register

__all__ = [
    "DESCRIPTOR_BYTES",
    "PAGE_REQUEST_BYTES",
    "ContextInvalidation",
    "DeviceTlbInvalidation",
    "InterruptInvalidation",
    "Invalidation",
    "InvalidationType",
    "InvalidationWait",
    "IotlbInvalidation",
    "PageGroupResponse",
    "PageRequest",
    "ResponseCode",
]

DESCRIPTOR_BYTES = 16
PAGE_REQUEST_BYTES = 32


class InvalidationType(enum.IntEnum):
    """What a descriptor asks for: bits 3:0, with 11:9 above them."""

    CONTEXT_CACHE = 1
    IOTLB = 2
    DEVICE_TLB = 3
    INTERRUPT_ENTRY_CACHE = 4
    WAIT = 5
    PASID_IOTLB = 6
    PASID_CACHE = 7
    PASID_DEVICE_TLB = 8
    PAGE_GROUP_RESPONSE = 9


class ResponseCode(enum.IntEnum):
    """How a page request ended."""

    SUCCESS = 0
    INVALID_REQUEST = 1
    FAILURE = 0xF


class Invalidation(Register):
    """What all descriptors have in common. 128 bits."""

    TYPE = Field(3, 0, InvalidationType)
    TYPE_HIGH = Field(11, 9)


class ContextInvalidation(Register):
    """Context-cache Invalidate; what is not named is reserved, here as below."""

    TYPE = Field(3, 0)
    G = Field(5, 4)
    DID = Field(31, 16)
    SID = Field(47, 32)
    FM = Field(49, 48)


class IotlbInvalidation(Register):
    """IOTLB Invalidate."""

    TYPE = Field(3, 0)
    G = Field(5, 4)
    DW = Field(6)
    DR = Field(7)
    DID = Field(31, 16)
    AM = Field(69, 64)
    IH = Field(70)
    ADDR = Field(127, 76)


class DeviceTlbInvalidation(Register):
    """Device-TLB Invalidate; with S, the size is in the trailing ones of ADDR."""

    TYPE = Field(3, 0)
    PFSID_LOW = Field(15, 12)
    MIP = Field(20, 16)
    SID = Field(47, 32)
    PFSID_HIGH = Field(63, 52)
    S = Field(64)
    ADDR = Field(127, 76)


class InterruptInvalidation(Register):
    """Interrupt Entry Cache Invalidate."""

    TYPE = Field(3, 0)
    G = Field(4)  # 1: of an index
    IM = Field(31, 27)
    IIDX = Field(47, 32)


class InvalidationWait(Register):
    """Invalidation Wait: tell when all before it is done."""

    TYPE = Field(3, 0)
    IF = Field(4)  # by interrupt
    SW = Field(5)  # by a word in memory
    FN = Field(6)  # fence
    PD = Field(7)  # page requests drained
    DATA = Field(63, 32)
    ADDR = Field(127, 66)


class PageGroupResponse(Register):
    """Page Group Response: the answer to a page request."""

    TYPE = Field(3, 0)
    PP = Field(4)
    CODE = Field(15, 12, ResponseCode)
    RID = Field(31, 16)
    PASID = Field(51, 32)
    PRGI = Field(75, 67)


class PageRequest(Register):
    """An entry of the page request queue: who needs which page. 256 bits."""

    TYPE = Field(7, 0)  # 1
    PP = Field(8)
    RID = Field(31, 16)
    PASID = Field(51, 32)
    EXE = Field(52)
    PRIV = Field(53)
    R = Field(64)
    W = Field(65)
    LPIG = Field(66)
    PRGI = Field(75, 67)
    ADDR = Field(127, 76)
