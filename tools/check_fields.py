"""Hold the register reference to its word: every bit that it calls modelled is one that the model takes into account.

A field of a modelled register is marked `stored` in `hw`, or the model names it; where kernels or the model take a word
as a whole, WHOLE says where. A field that is marked, and named all the same, is wrong as well. And each field that does
something is named in a test, or TESTED says which test has its bits as numbers, or draws them.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from virtfn.hw.bits import Access, Decl, Register, Status
from virtfn.hw.i82576 import PhyRegs, Regs
from virtfn.hw.vtd import regs as vtd

ROOT = Path(__file__).parents[1]
MODEL = [ROOT / "src" / "virtfn" / folder for folder in ("devices", "kernels", "machine")]
# Not those of hw, which name every field, to say where it is.
TESTS = [ROOT / "tests" / folder for folder in ("conformance", "fuzz", "property", "unit/devices", "unit/drivers")]
MAPS = (Regs, PhyRegs, vtd.Regs)

# Registers whose words are taken as they are: the file, and what in it takes them.
WHOLE = {
    "SWSM.SMBI": ("machine/regfile.py", "decl.mask(Access.RS)"),
    "EICR.VECTORS": ("devices/nic82576/interrupts.py", 'self._port["eicr"]'),
    "IVAR": ("devices/nic82576/interrupts.py", "peek(Regs.IVAR, n), 0x1F"),
    "LOW16": ("kernels/i82576/ring.py", "r.tail"),  # heads and tails
    "MRQC.RSS_IPV4": ("kernels/i82576/classify.py", "fields & (0x10 if six else 2)"),
    "MRQC.RSS_IPV6": ("kernels/i82576/classify.py", "fields & (0x10 if six else 2)"),
    "MRQC.RSS_TCP4": ("kernels/i82576/classify.py", "fields & (0x20 if six else 1)"),
    "MRQC.RSS_TCP6": ("kernels/i82576/classify.py", "fields & (0x20 if six else 1)"),
    "MRQC.RSS_UDP4": ("kernels/i82576/classify.py", "fields & (0x80 if six else 0x40)"),
    "MRQC.RSS_UDP6": ("kernels/i82576/classify.py", "fields & (0x80 if six else 0x40)"),
    "QUEUE_BITS": ("devices/nic82576/l2switch.py", "peek(Regs.QDE)"),
    "QueueOffset": ("devices/iommu/queue.py", "peek(Regs.IQT)"),
    "RAL": ("devices/nic82576/l2switch.py", "Regs.RAL, Regs.RAH"),
    "RDBAL": ("kernels/i82576/ring.py", "r.raw_base"),
    "RETA": ("devices/nic82576/l2switch.py", "words(Regs.RETA)"),
    "RLPML": ("devices/nic82576/l2switch.py", "peek(Regs.RLPML)"),
    "SRRCTL.BSIZEHEADER": ("kernels/i82576/ring.py", "layout >> 8 & 0xF"),
    "TDWBAL.ADDR": ("kernels/i82576/tx.py", "r.head_wb & ~np.int64(3)"),
    "VF_BITS": ("devices/nic82576/l2switch.py", "peek(Regs.VFRE), peek(Regs.VFTE)"),
    "VF_VECTORS": ("devices/nic82576/interrupts.py", "on_write(Regs.VTEICS)"),
    "VTIVAR": ("devices/nic82576/interrupts.py", "peek(Regs.VTIVAR, n), 3"),
}

_GAPS, _SWITCH, _FIELDS = (
    "conformance/test_82576_gaps.py",
    "property/test_switch.py",
    "conformance/test_82576_fields.py",
)
_MAILBOX, _INTERRUPTS = "conformance/test_82576_mailbox.py", "conformance/test_82576_interrupts.py"
_MESSAGES, _IGB = "conformance/test_82576_messages.py", "unit/drivers/test_igb.py"
TESTED = {
    "BMCR.LOOPBACK": ("conformance/test_82576_phy.py", "test_a_loop_brings_frames_back_to_queue_0"),
    "BMCR.POWER_DOWN": ("conformance/test_82576_phy.py", "test_powering_the_phy_down_takes_the_link"),
    "BMCR.RESET": ("conformance/test_82576_phy.py", "test_reset_and_restart_clear_themselves"),
    "CTRL_EXT.IAME": (_MESSAGES, "test_iam_masks_on_reading_icr_if_ctrl_ext_says_so"),
    "EICR.TCP_TIMER": (_MESSAGES, "test_the_tcp_timer_has_a_vector_of_its_own"),
    "EICR.VECTORS": (_INTERRUPTS, "test_a_cause_is_read_once_and_by_its_owner"),
    "EITR.CNT_INGR": (_INTERRUPTS, "test_writing_eitr_starts_counting_anew_unless_told_not_to"),
    "EITR.INTERVAL": (_INTERRUPTS, "test_eitr_keeps_messages_of_a_vector_apart"),
    "GCMD.CFI": ("unit/devices/iommu/test_unit.py", "test_cfi_lets_messages_of_the_old_format_pass"),
    "IVAR": (_INTERRUPTS, "test_ivar_routes_the_pfs_queues_n_and_n_plus_8"),
    "LOW16": ("conformance/test_82576_selftest.py", "test_junk_rings_under_fire_touch_no_memory"),
    "LVMMC": (_GAPS, "test_gap_1_a_malicious_driver_is_blocked_until_its_pool_is_switched_off_and_on"),
    "MBVFICR": (_MAILBOX, "test_the_vf_rings_the_pf"),
    "MRQC": (_FIELDS, "test_mrqc_names_what_is_hashed"),
    "P2VMAILBOX": (_MAILBOX, "test_the_pf_rings_a_vf_on_the_vector_that_vtivar_misc_names"),
    "PQA": ("unit/devices/iommu/test_page_requests.py", "test_the_ring_wraps"),
    "QUEUE_BITS": (_GAPS, "test_gap_11_a_queue_drops_and_counts_or_holds_the_line_up"),
    "QueueOffset": ("property/test_iommu_queue.py", "test_each_invalidation_takes_exactly_its_part"),
    "RAH": (_SWITCH, "test_pools"),
    "RAL": (_SWITCH, "test_pools"),
    "RDBAL": ("conformance/test_82576_selftest.py", "test_every_pattern_reads_back"),
    "RDLEN": ("conformance/test_82576_selftest.py", "test_every_pattern_reads_back"),
    "RCTL.MPE": (_FIELDS, "test_rctl_takes_what_no_address_names"),
    "RLPML": (_FIELDS, "test_rctl_lpe_and_rlpml_say_how_long_frames_are"),
    "RETA": (_FIELDS, "test_reta_and_vmolr_rsse_choose_the_queue"),
    "RXDCTL.ENABLE": (_FIELDS, "test_a_queue_that_is_off_gets_nothing"),
    "RTTBCNRC": (_IGB, "test_a_rate_holds_within_five_percent"),
    "SRRCTL.BSIZEHEADER": ("conformance/test_82576_tags.py", "test_headers_are_split_behind_both_tags"),
    "SRRCTL.DESCTYPE": ("conformance/test_82576_tags.py", "test_headers_are_split_behind_both_tags"),
    "SRRCTL.DROP_EN": (_GAPS, "test_gap_11_a_queue_drops_and_counts_or_holds_the_line_up"),
    "SWSM.SMBI": ("conformance/test_82576_nvm.py", "test_the_semaphores_are_taken_and_given_back"),
    "TDWBAL": ("unit/kernels/vtd/test_paging.py", "test_frames_in_pieces"),
    "TXDCTL.ENABLE": (
        "conformance/test_82576_resets.py",
        "test_a_vf_reset_stops_its_queues_and_leaves_their_configuration",
    ),
    "V2PMAILBOX": (_MAILBOX, "test_what_the_pf_did_is_cleared_by_reading_it"),
    "VF_BITS": (_SWITCH, "test_pools"),
    "VF_VECTORS": (_INTERRUPTS, "test_masks_are_set_and_cleared_bit_by_bit"),
    "VLVF": (_SWITCH, "test_pools"),
    "VMOLR.LPE": (_FIELDS, "test_vmolr_lpe_and_rlpml_say_how_long_a_pools_frames_are"),
    "VMOLR.RLPML": (_FIELDS, "test_vmolr_lpe_and_rlpml_say_how_long_a_pools_frames_are"),
    "VMOLR.AUPE": (_SWITCH, "test_pools"),
    "VMOLR.ROPE": (_GAPS, "test_gap_6_unicast_hashes_go_by_rope_and_multicast_by_rompe_and_mpme"),
    "VMOLR.BAM": (_SWITCH, "test_pools"),
    "VMOLR.RSSE": (_FIELDS, "test_reta_and_vmolr_rsse_choose_the_queue"),
    "VMRCTL": (_SWITCH, "test_pools"),
    "VMVIR.PORT_VLAN": (_IGB, "test_port_vlans_isolate_and_are_invisible"),
    "VMVIR.VLANA": (_IGB, "test_port_vlans_isolate_and_are_invisible"),
    "VTIVAR": (_INTERRUPTS, "test_vtivar_routes_each_of_a_vfs_four_queues"),
    "VTIVAR_MISC": (_MAILBOX, "test_the_pf_rings_a_vf_on_the_vector_that_vtivar_misc_names"),
    "VT_CTL": (_SWITCH, "test_pools"),
    "WVBR": (_GAPS, "test_gap_1_a_malicious_driver_is_blocked_until_its_pool_is_switched_off_and_on"),
}


class Uses(ast.NodeVisitor):
    """The fields that a module names, by the class of their register."""

    def __init__(self, kinds: dict[str, type[Register]]) -> None:
        self._kinds = kinds
        self._held: dict[str, set[str]] = defaultdict(set)
        self.found: set[tuple[str, str]] = set()
        self.spoken: set[str] = set()

    def look(self, tree: ast.AST) -> None:
        """Look through a module: what holds which register, then what is asked of it."""
        for node in (*ast.walk(tree), *ast.walk(tree)):  # twice: what a function returns is known by then
            match node:
                case ast.Assign(targets=targets, value=value):
                    for target in targets:
                        self._hold(target, value)
                case ast.NamedExpr(target=target, value=value):
                    self._hold(target, value)
                case ast.arg(arg=name, annotation=ast.Name(id=kind)) if kind in self._kinds:
                    self._held[name].add(kind)
                case ast.FunctionDef(name=name, returns=ast.Name(id=kind)) if kind in self._kinds:
                    self._held[name].add(kind)
        self.spoken = self._made(tree)
        self.visit(tree)

    def _hold(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts, strict=False):
                self._hold(one, its)
        elif isinstance(target, ast.Tuple):
            for one in target.elts:
                self._hold(one, value)
        elif isinstance(target, ast.Name):
            self._held[target.id] |= self._made(value) | self._kinds_of(value)
        elif isinstance(target, ast.Attribute):
            self._held[target.attr] |= self._made(value) | self._kinds_of(value)

    def _made(self, value: ast.AST) -> set[str]:
        """Tell which registers a value is made of: `KIND(...)`, a list of these, a call that returns them."""
        return {node.id for node in ast.walk(value) if isinstance(node, ast.Name) and node.id in self._kinds}

    def _kinds_of(self, value: ast.expr) -> set[str]:
        match value:
            case ast.Name(id=name):
                return {name} & self._kinds.keys() or self._held.get(name, set())
            case ast.Attribute(attr=name):
                return {name} & self._kinds.keys() or self._held.get(name, set())
            case ast.Subscript(value=inner):
                return self._kinds_of(inner)
            case ast.Call(func=ast.Attribute(value=inner, attr="of" | "replace")):
                return self._kinds_of(inner)
            case ast.Call(func=inner):
                return self._kinds_of(inner)
        return set()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Take `KIND.FIELD`, `held.FIELD`."""
        self.found |= {(kind, node.attr) for kind in self._kinds_of(node.value)}
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Take `KIND.of(FIELD=...)`, `held.replace(FIELD=...)`, and the names that are given to a look-up by name.

        One that is handed down, as in `set(FIELD=1)`, is taken for every register that the module speaks of.
        """
        if not (isinstance(node.func, ast.Attribute) and node.func.attr in ("of", "replace")):
            words = {word.arg for word in node.keywords}
            self.found |= {(name, w) for name in self.spoken & self._kinds.keys() for w in words if w}
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("of", "replace"):
            kinds = self._kinds_of(node.func.value)
            self.found |= {(kind, word.arg) for kind in kinds for word in node.keywords if word.arg}
        texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        self.found |= {(name, text) for name, kind in self._kinds.items() for text in texts if hasattr(kind, text)}
        self.generic_visit(node)


def modules(folders: list[Path]) -> Iterator[ast.AST]:
    """Parse every module of some folders."""
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            yield ast.parse(path.read_text(encoding="utf-8"))


def used(folders: list[Path], kinds: dict[str, type[Register]]) -> set[tuple[str, str]]:
    """Find the fields that some folders name, as (class, field)."""
    found = set()
    for tree in modules(folders):
        uses = Uses(kinds)
        uses.look(tree)
        found |= uses.found
    return found


def modelled() -> list[Decl]:
    """List the registers that are modelled, of every map."""
    return [decl for regmap in MAPS for decl in regmap.DECLS if decl.status is Status.MODELLED]


def stale(kinds: dict[str, type[Register]]) -> list[str]:
    """Say which entries of the tables speak of what is not there any more."""
    wrong = []
    for name, (path, text) in WHOLE.items():
        if name.partition(".")[0] in kinds and text not in (ROOT / "src" / "virtfn" / path).read_text(encoding="utf-8"):
            wrong.append(f"{name}: {path} does not take it as {text} any more")
    for name, (path, test) in TESTED.items():
        if name.partition(".")[0] in kinds and f"def {test}(" not in (ROOT / "tests" / path).read_text(
            encoding="utf-8"
        ):
            wrong.append(f"{name}: tests/{path} has no {test} any more")
    return wrong


def complaints(decls: list[Decl], model: list[Path], tests: list[Path]) -> list[str]:
    """Say of each field that is not what the reference says."""
    kinds = {decl.kind.__name__: decl.kind for decl in decls if decl.kind is not Register}
    named, tried = used(model, kinds), used(tests, kinds)
    wrong = stale(kinds)
    for name, kind in kinds.items():
        read_only = all(decl.access is Access.RO for decl in decls if decl.kind is kind)
        for field in kind.FIELDS:
            acts = (name, field.name) in named
            # What nobody sets in a register that is only read is as at reset: that is what it does.
            whole = name in WHOLE or f"{name}.{field.name}" in WHOLE
            excused = whole or read_only or field.access in (Access.RO, Access.RSV)
            if field.stored and acts:
                wrong.append(f"{name}.{field.name} is marked as stored, and the model names it")
            elif not field.stored and not acts and not excused:
                wrong.append(f"{name}.{field.name} is called modelled, and the model does not name it")
            untried = (name, field.name) not in tried and not {name, f"{name}.{field.name}"} & TESTED.keys()
            if untried and not (field.stored or read_only or field.access in (Access.RO, Access.RSV)):
                wrong.append(f"{name}.{field.name} does something, and no test names it")
    return wrong


def main() -> int:
    wrong = complaints(modelled(), MODEL, TESTS)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
