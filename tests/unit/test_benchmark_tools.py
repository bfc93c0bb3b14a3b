"""What scripts/bench reads from other programs, and how it starts them."""

from pathlib import Path

import pytest

from benchmark import checks, dependencies, load, measuring, profile, programs, variants
from benchmark.programs import Program
from benchmark.results import KEPT, NEW, PageFacts
from benchmark.variants import FORK, NO_FAST_PATH, RESET, VARIANTS, Variant


def variant(name: str) -> Variant:
    return next(one for one in VARIANTS if one.name == name)


def test_a_line_of_wrk() -> None:
    line = '{"p50_us": 40, "p99_us": 90, "max_us": 500, "requests": 1000, "duration_us": 2000000, "errors": 3}'
    found = load.parse_wrk(f"Running 2s test\n{line}\n", clients=8)
    assert (found.p50_us, found.p99_us, found.max_us, found.errors) == (40, 90, 500, 3)
    assert found.requests_per_s == 500
    assert found.each_us == 16_000


def test_a_run_of_wrk_without_an_answer_is_no_fast_one() -> None:
    line = '{"p50_us": 0, "p99_us": 0, "max_us": 0, "requests": 0, "duration_us": 2000000, "errors": 1}'
    assert load.parse_wrk(line, clients=1).p50_us == 2_000_000


def test_a_line_of_the_open_loop() -> None:
    found = load.parse_constant_rate(
        '{"rate": 500, "requests": 900, "seconds": 2.0, "errors": 1, "unfinished": 2, '
        '"p50_us": 1, "p90_us": 2, "p99_us": 3, "p999_us": 4, "max_us": 5}'
    )
    assert (found.rate, found.requests_per_s, found.p999_us, found.unfinished) == (500, 450, 4, 2)


def test_counters_are_differences_for_each_request() -> None:
    sums: dict[str, float] = {}
    measuring.add_difference(sums, {"requests": 10, "totals.exits": 100}, {"requests": 20, "totals.exits": 130})
    measuring.add_difference(sums, {"requests": 50}, {"requests": 60, "totals.exits": 10, "resets": 7})
    assert measuring.per_request(sums) == {"requests": 20, "exits": 2}
    assert measuring.per_request({}) == {}


def test_the_line_about_many_vms() -> None:
    log = "x\n2026-11-21T19:09:40.295Z debug 200 request VMs in 7 processes ready 1.035 s after the snapshot\n"
    assert checks.parse_forked(log) == (200, 7, 1.035)
    assert checks.parse_forked("1 request VMs in 1 process ready 0.035 s after the snapshot") == (1, 1, 0.035)
    with pytest.raises(RuntimeError, match="does not log"):
        checks.parse_forked("")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("C", ["C hello"]),
        ("deno", ["Deno hello"]),
        ("python", ["CPython http.server", "CPython uvicorn"]),
        ("nothing", []),
        ("", list(programs.PROGRAM_MAKERS)),
    ],
)
def test_a_program_is_chosen_by_a_word_or_by_a_part(text: str, names: list[str]) -> None:
    assert programs.chosen(text) == names


def test_the_page_is_as_large_as_it_has_to_be() -> None:
    measured: list[int] = []

    def measure(items: int) -> PageFacts:
        measured.append(items)
        return PageFacts(items=items, rendering_us=50 + items * 4.0, response_bytes=items * 300)

    facts = programs.calibrate(measure)
    assert 0.85 * programs.PAGE_US <= facts.rendering_us <= 1.15 * programs.PAGE_US
    assert measured[-1] == facts.items
    assert len(measured) <= 3


def test_words_of_a_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "kvmserver", lambda: "kvmserver")
    program = Program("x", ("serve", "--port={port}"), 7)
    words = variants.command(program, variant(RESET), 8000, 2, ("--verbose",))
    assert words is not None
    assert " ".join(words) == "kvmserver -t 2 --warmup 7 --allow-all -e --verbose run serve --port=8000"
    assert variants.command(program, variant("native"), 8000) == ["serve", "--port=8000"]
    assert variants.command(program, variant(FORK), 8000) is None


def test_a_program_may_have_no_native_row_over_kept_connections() -> None:
    program = Program("x", (), 0, native_kinds=(NEW,))
    assert variants.kinds_of(program, variant("native")) == [NEW]
    assert variants.kinds_of(program, variant(RESET)) == [KEPT, NEW]


@pytest.mark.parametrize(("text", "known"), [("  --fast-path  Answer inside.", True), ("  --other", False)])
def test_a_variant_needs_its_option(monkeypatch: pytest.MonkeyPatch, text: str, known: bool) -> None:
    monkeypatch.setattr(variants, "kvmserver", lambda: "kvmserver")
    monkeypatch.setattr(variants, "output_of", lambda _words: text)
    variants.has_option.cache_clear()
    try:
        assert variants.available(variant(NO_FAST_PATH)) is known
        assert variants.available(variant(RESET))
    finally:
        variants.has_option.cache_clear()


def test_dependencies_are_made_once_for_each_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "CACHE", tmp_path / "cache")
    lock, calls = tmp_path / "lock", []

    def fill(directory: Path) -> None:
        calls.append(directory)
        (directory / "made").write_text(lock.read_text())

    def get() -> str:
        return (dependencies.cached("thing", [lock], fill) / "made").read_text()

    lock.write_text("one")
    assert [get(), get()] == ["one", "one"]
    lock.write_text("two")
    assert get() == "two"
    assert len(calls) == 2


def test_an_installation_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "CACHE", tmp_path)

    def fill(directory: Path) -> None:
        (directory / "half").touch()
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        dependencies.cached("thing", [], fill)
    assert list(tmp_path.iterdir()) == []


STACKS = """\
vm-0 24645
\tffffffff812ef717 cr4_set_bits.constprop.0 ([kernel.kallsyms])
\tffffffff8127e2f5 vcpu_put ([kernel.kallsyms])
\tffffffff812af128 kvm_arch_vcpu_ioctl_run ([kernel.kallsyms])
\tffffffff816d6d2b __x64_sys_ioctl ([kernel.kallsyms])
\t           fdd6b __GI___ioctl (/usr/lib/x86_64-linux-gnu/libc.so.6)

vm-0 24645
\tffffffff812c0ef1 tcp_ack ([kernel.kallsyms])
\tffffffff81e2eb30 __x64_sys_sendto ([kernel.kallsyms])
\t          1c3fbc [unknown] (/tmp/kvmserver/_vmm.abi3.so)

vm-0 24645
\t          1c3fbc [unknown] (/tmp/kvmserver/_vmm.abi3.so)

vm-0 24645
\t           fdd6b __GI___ioctl (/usr/lib/x86_64-linux-gnu/libc.so.6)

vm-0 24645
\t           fdd6b __memmove_avx512_unaligned_erms (/usr/lib/x86_64-linux-gnu/libc.so.6)

vm-0 24645
\tffffffff812ef717 asm_sysvec ([kernel.kallsyms])
\t           fdd6b malloc (/usr/lib/x86_64-linux-gnu/libc.so.6)

"""


def test_call_chains_are_sorted_by_what_they_belong_to() -> None:
    assert profile.parse_script(STACKS) == {
        "KVM: taking the VCPU up and laying it down": 1,
        "host kernel: sendto": 1,
        "kvmserver: the data plane (Rust)": 1,
        "KVM: entering and leaving, all else": 1,
        "kvmserver: memory copies": 1,
        "host kernel: all else (interrupts, scheduler, faults)": 1,
    }


def test_samples_of_the_guest_are_counted() -> None:
    dump = "1 0x1 [0x40]: PERF_RECORD_SAMPLE(IP, 0x5): 1/2: 0x1e00\n... PERF_RECORD_SAMPLE(IP, 0x4001): 1/2\n"
    assert profile.count_guest_samples(dump) == 1


def test_the_table_of_strace() -> None:
    text = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 80.00    0.8       10             81000           ioctl
 20.00    0.2       10             10000       200 recvfrom
------ ----------- ----------- --------- --------- ----------------
100.00    1.0       10             91000       200 total
"""
    assert profile.parse_strace(text) == {"ioctl": 81000, "recvfrom": 10000}


def test_busy_loops_tell_of_their_turns() -> None:
    assert checks._loops(2) > 0
