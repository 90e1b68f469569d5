def test_sigterm_stops_the_main_thread_and_is_handled_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped, when_terminated():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    handlers = []

    def run():
        with when_terminated():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_sigterm_does_not_cut_short_the_putting_back_of_a_run(tmp_path, monkeypatch):
    def release(claim):
        signal.raise_signal(signal.SIGTERM)
        real(claim)

    let_runs_end(monkeypatch, KeyboardInterrupt())
    queue = queue_of([tiny_run()], tmp_path)
    real = queue.release
    monkeypatch.setattr(queue, "release", release)
    with pytest.raises(KeyboardInterrupt), when_terminated():
        work(queue, tmp_path)
    assert queue.states()[0].state == "waiting"
    queue.close()


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_terminated_worker_puts_its_runs_back(processes, tmp_path):
    runs = [tiny_run(seed=seed, epochs=100_000) for seed in range(processes)]
    queue = queue_of(runs, tmp_path)
    worker = start_worker(str(tmp_path), tmp_path, "--processes", str(processes))
    try:
        while not all((tmp_path / run.folder / "metrics.jsonl").is_file() for run in runs):
            assert worker.poll() is None
            time.sleep(0.05)
    finally:
        worker.terminate()
    assert worker.wait(120) == 143
    assert run_states(queue) == ["waiting"] * processes
    assert [trial.user_attrs.get("ending") for trial in queue._study.get_trials()] == [
        *["released"] * processes,
        *[None] * processes,
    ]
    queue.close()
