"""The engine's core tests: what scripts/kvm-core-tests runs on the real kvm_amd, and what it leaves out there."""

F, S = "tests/functional", "tests/security"
SELECTION = (
    f"{F}/test_demo_and_doctor.py::test_doctor_finds_this_machine_fit",
    f"{F}/test_demo_and_doctor.py::test_doctor_finds_what_its_page_explains_and_nothing_else",
    f"{F}/test_demo_and_doctor.py::test_what_doctor_finds_is_plausible",
    f"{F}/test_demo_and_doctor.py::test_doctors_sentence_on_the_kind_of_kvm_is_about_what_it_measured",
    # Run, exit status, signals, streams of simple programs; CPython and what it imports.
    f"{F}/test_programs.py::test_uname_prints_a_linux_line",
    f"{F}/test_programs.py::test_python_imports_extension_modules",
    f"{F}/test_programs.py::test_exit_status_passes_through[7]",
    f"{F}/test_programs.py::test_an_exit_in_a_thread_ends_the_program",
    f"{F}/test_programs.py::test_death_by_signal_is_128_and_its_number",
    f"{F}/test_programs.py::test_standard_streams_pass_through",
    f"{F}/test_programs.py::test_every_kind_of_elf_runs",
    f"{F}/test_programs.py::test_a_deadlock_is_reported_not_waited_for",
    # Servers in C and CPython's, in every way to wait, with --verify-reset.
    f"{F}/test_servers.py::test_counter_is_frozen[server_epoll-lt-epoll-1]",
    f"{F}/test_servers.py::test_counter_is_frozen[server_epoll-lt-epoll-4]",
    f"{F}/test_servers.py::test_counter_is_frozen[server_epoll-thread-epoll-1]",
    f"{F}/test_servers.py::test_counter_is_frozen[server_poll-ppoll-poll-1]",
    f"{F}/test_servers.py::test_counter_is_frozen[server_select-pselect-select-1]",
    f"{F}/test_servers.py::test_counter_is_frozen[server_accept-thread-accept-4]",
    f"{F}/test_runtimes.py::test_cpython[http_server-poll-1]",
    # The in-guest fast path.
    f"{F}/test_fast_path.py::test_a_request_costs_few_exits[c-2]",
    f"{F}/test_fast_path.py::test_random_calls_come_to_the_same_with_and_without_it[http-0]",
    f"{F}/test_fast_path.py::test_random_calls_come_to_the_same_with_and_without_it[raw-1]",
    f"{F}/test_fast_path.py::test_garbage_in_its_memory_harms_only_the_request_itself",
    # Faults, signals, time limits and kicks in request VMs.
    f"{F}/test_failures.py::test_a_crash_is_a_502_and_one_log_line",
    f"{F}/test_failures.py::test_a_hang_is_a_504",
    f"{F}/test_failures.py::test_a_failure_after_the_first_byte_cuts_the_connection",
    f"{F}/test_failures.py::test_the_time_limit_holds_a_hundred_times",
    # What Linux gives for calls, clocks, faults and signals, compared with this machine's own kernel.
    f"{F}/test_conformance.py::test_guest_prints_the_same_claims_as_native[memory-dynamic]",
    f"{F}/test_conformance.py::test_guest_prints_the_same_claims_as_native[clocks-dynamic]",
    f"{F}/test_conformance.py::test_guest_prints_the_same_claims_as_native[signals-dynamic]",
    f"{F}/test_conformance.py::test_guest_prints_the_same_claims_as_native[registers-dynamic]",
    # Code made and patched at run time.
    f"{F}/test_run_time_code.py::test_code_made_in_every_request",
    f"{F}/test_run_time_code.py::test_code_patched_for_good_is_undone_by_a_reset",
    # Nothing of one request is found by another.
    f"{F}/test_canary.py",
    # Hostile instructions, jumps into the entry page, hostile uses of memory: EFAULT is decoded.
    f"{S}/test_hostile_guests.py",
    # Worker processes: each with VMs of its own, replaced when one dies.
    f"{F}/test_peer_bugs.py::test_each_worker_process_forks_its_own_vms",
    f"{F}/test_start.py::test_a_worker_that_dies_is_replaced",
    # Calls of the storage program.
    f"{F}/test_storage_calls.py::test_every_number_is_given_once_to_eight_clients_of_four_vms",
    f"{F}/test_storage_calls.py::test_a_buffer_of_any_size_comes_back_changed[4097]",
    f"{F}/test_storage_calls.py::test_k16_a_call_leaves_the_registers_alone",
    f"{F}/test_storage_calls.py::test_a_busy_storage_program_is_kicked",
    # Without the dirty ring, and without synchronised registers.
    f"{F}/test_fallbacks.py::test_counter_is_frozen_and_the_log_says_what_is_missing[dirty-ring-server_epoll]",
    f"{F}/test_fallbacks.py::test_counter_is_frozen_and_the_log_says_what_is_missing[sync-registers-server_epoll]",
    # Without all that can be done without: one or two tests of each kind.
    f"{F}/test_fallbacks.py::test_the_doctor_names_what_is_missing_and_finds_the_machine_fit[all]",
    f"{F}/test_fallbacks.py::test_exit_status_passes_through[all-7]",
    f"{F}/test_fallbacks.py::test_death_by_signal_is_128_and_its_number[all-ctypes.string_at(8)-11]",
    f"{F}/test_fallbacks.py::test_counter_is_frozen_and_the_log_says_what_is_missing[all-server_epoll]",
    f"{F}/test_fallbacks.py::test_cpython_is_frozen[all]",
    f"{F}/test_fallbacks.py::test_a_crash_is_a_502[all-/segv-SIGSEGV]",
    f"{F}/test_fallbacks.py::test_a_hang_is_a_504[all-/loop]",
    f"{F}/test_fallbacks.py::test_a_hang_is_a_504[all-/loop-calls]",
    f"{F}/test_fallbacks.py::test_our_linux_is_the_same[all]",
    f"{F}/test_fallbacks.py::test_memory_calls_answer_as_natively[all-/truncated]",
    f"{F}/test_fallbacks.py::test_memory_calls_answer_as_natively[all-/unreadable]",
    f"{F}/test_fallbacks.py::test_code_patched_for_good_is_undone_by_a_reset[all]",
    f"{F}/test_fallbacks.py::test_secrets_are_never_seen_again[all]",
    f"{F}/test_fallbacks.py::test_a_worker_that_dies_is_replaced[all]",
    f"{F}/test_fallbacks.py::test_a_busy_storage_program_is_kicked[all]",
)
# Of these, docs/kvm.md says of each why.
LEFT_OUT = (
    # Too slow for their own time limits on an emulated CPU.
    f"{F}/test_failures.py::test_a_crash_is_a_502_and_one_log_line[/hog-memory]",
    f"{S}/test_hostile_guests.py::test_memory_is_limited_and_given_back[/dirty/20000-200]",
    f"{S}/test_hostile_guests.py::test_memory_is_limited_and_given_back[/dirty/30000-200]",
    f"{S}/test_hostile_guests.py::test_memory_is_limited_and_given_back[/dirty/40000-502]",
    f"{S}/test_hostile_guests.py::test_memory_is_limited_and_given_back[/wide/-200]",
    f"{S}/test_hostile_guests.py::test_memory_calls_answer_as_natively[/fragments]",
    f"{S}/test_hostile_guests.py::test_memory_calls_answer_as_natively[/hidden-fragments]",
    # Long, and the larger case of each is there.
    f"{S}/test_hostile_guests.py::test_memory_is_limited_and_given_back[/big-write/100-200]",
    f"{S}/test_hostile_guests.py::test_memory_is_limited_and_given_back[/big-file/100-200]",
    # QEMU's CPU does something else than a real one, natively too.
    f"{S}/test_hostile_guests.py::test_an_instruction_raises_what_it_raises_natively[/far-return-supervisor]",
    f"{S}/test_hostile_guests.py::test_an_instruction_raises_what_it_raises_natively[/fs-base]",
    f"{S}/test_hostile_guests.py::test_memory_calls_answer_as_natively[/edges]",
    f"{S}/test_hostile_guests.py::test_an_instruction_raises_what_it_raises_natively[/non-canonical-call]",
)
# Of the crate's unit tests: they compile programs, and there is no compiler.
UNIT_TESTS_LEFT_OUT = (
    "loader::tests::static_programs_start_at_their_own_entry",
    "loader::tests::dynamic_programs_at_fixed_addresses_and_with_musl_load",
    "loader::tests::an_executable_stack_is_given_to_those_who_ask",
)
# Features of the kernel that there is another way for (vmm/src/withheld.rs), and the unit tests that run once more
# without them.
WITHHELD = "dirty-ring,sync-registers,pagemap-scan,time-stamp-counter,fsgsbase"
UNIT_TESTS_WITHOUT = ("platform::", "sandbox::")
