@pytest.mark.slow
def test_four_processes_run_every_run_once(tmp_path, processes):
    runs = [tiny_run(seed=seed) for seed in range(8)]
    queue = queue_of(runs, tmp_path)
    answers = processes.SimpleQueue()
    started = [processes.Process(target=run_all, args=(str(tmp_path), str(tmp_path), answers)) for _ in range(4)]
    for process in started:
        process.start()
    ran = sorted(seed for _ in started for seed in answers.get())
    for process in started:
        process.join()
    assert ran == list(range(8))
    assert run_states(queue) == ["complete"] * 8
    queue.close()


class Process:
    """A started process that ends with the status it is given, or an error of the system in the place of one."""

    def __init__(self, code):
        self.code, self.calls = code, []

    def terminate(self):
        self.calls.append("terminate")

    def wait(self):
        self.calls.append("wait")
        if self.code is None and "terminate" not in self.calls:
            raise KeyboardInterrupt
        return self.code


def start_in_turn(monkeypatch, processes):
    """Let the starting of a process answer with these in turn; returns how each was started."""
    started = []

    def start(command, env, stdout):
        started.append((command[-6:], env["CUDA_VISIBLE_DEVICES"]))
        process = processes[len(started) - 1]
        if isinstance(process, OSError):
            raise process
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    return started


def test_processes_share_the_gpus_in_turn(tmp_path, monkeypatch):
    started = start_in_turn(monkeypatch, [Process(0) for _ in range(3)])
    queue = queue_of([tiny_run()], tmp_path)
    work_in_processes(queue, ["--study", "x"], 3)
    assert started == [(["backpass", "worker", "--study", "x", "--processes", "1"], gpu) for gpu in ("4", "7", "4")]
    assert default_processes(CPU) == 1
    queue.close()


def test_what_the_processes_end_with_counts_only_while_a_run_waits_or_runs(tmp_path, monkeypatch):
    queue = queue_of([tiny_run(seed=seed) for seed in (0, 1)], tmp_path)
    queue.fail(queue.claim(), "no such thing")
    for live in ("waiting", "running"):
        start_in_turn(monkeypatch, [Process(2), Process(-9)])
        with pytest.raises(StateError, match=r"expected 2 workers to end with status 0, got \[2, -9\]"):
            work_in_processes(queue, ["--study", "x"], 2)
        if live == "waiting":
            claim = queue.claim()
    queue.finish(claim, 0.5)
    start_in_turn(monkeypatch, [Process(2), Process(-9)])
    work_in_processes(queue, ["--study", "x"], 2)
    queue.close()


@pytest.mark.parametrize(("last", "error"), [(Process(None), KeyboardInterrupt), (OSError("no memory"), OSError)])
def test_processes_end_with_the_one_that_started_them(last, error, tmp_path, monkeypatch):
    first = Process(0)
    start_in_turn(monkeypatch, [first, last])
    queue = queue_of([tiny_run()], tmp_path)
    with pytest.raises(error):
        work_in_processes(queue, ["--study", "x"], 2)
    for process in (first, last):
        if isinstance(process, Process):
            assert process.calls[-2:] == ["terminate", "wait"]
    queue.close()


def test_a_study_in_processes_comes_to_the_same_as_in_one(tmp_path, monkeypatch, make_record):
    plan = compare_plan(TINY, ["plain", "pgt"], [0])

    def end_both(queue, arguments, processes):
        queue.finish(queue.claim(), 0.5, asdict(make_record(TINY, "plain", 0, [0.5])))
        queue.fail(queue.claim(), "no such thing")
        work_in_processes(queue, arguments, processes)

    monkeypatch.setattr(studies, "work_in_processes", end_both)
    start_in_turn(monkeypatch, [Process(2), Process(2)])
    outcome = run_study(plan, tmp_path, runtime=CPU, processes=2)
    assert [result.method for result in outcome.results] == ["plain"]
    assert outcome.failures == {"pgt-seed0": "no such thing"}


@pytest.mark.slow
def test_a_study_in_several_processes_on_postgresql_brings_its_results_home(tmp_path, postgresql):
    plan = compare_plan(TINY, ["plain", "pgt"], [0, 1])
    folder = tmp_path / "study"
    outcome = run_study(plan, folder, runtime=CPU, storage=postgresql, processes=2)
    assert [(result.method, result.seed) for result in outcome.results] == [
        ("plain", 0),
        ("pgt", 0),
        ("plain", 1),
        ("pgt", 1),
    ]
    shutil.rmtree(folder / "pgt-seed0")  # as if another machine had run it in a folder of its own
    again = run_study(plan, folder, runtime=CPU, storage=postgresql, progress=None)
    assert again == outcome
    assert (folder / "pgt-seed0" / "result.json").is_file()
