def start_worker(address, folder, *options):
    command = [sys.executable, "-m", "backpass", "worker", "--study", address, "--out", str(folder), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*command, "--heartbeat", "0.5", "--grace", "6", *options], env=environment, stdout=subprocess.DEVNULL
    )


def essence(result):
    """Return what must not depend on who computed it."""
    return result.run, [(r["train_loss"], r["test_accuracy"]) for r in result.history], result.scalings


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A plan and the folder in which one worker has run it alone."""
    recipe = replace(TINY, epochs=25, data=DataSettings(limit_train=256, limit_test=60))
    plan = compare_plan(recipe, ["plain", "sgs"], [0, 1, 2, 3])
    folder = tmp_path_factory.mktemp("undisturbed")
    queue = queue_of(plan.runs(), folder)
    assert start_worker(str(folder), folder).wait(300) == 0
    queue.close()
    return plan, folder


@pytest.mark.parametrize("storage", ["sqlite", "postgresql", pytest.param("journal", marks=pytest.mark.slow)])
def test_two_of_four_workers_are_killed_and_nothing_shows(storage, undisturbed, tmp_path, request):
    plan, alone = undisturbed
    folder = tmp_path / "four"
    address = {"sqlite": lambda: str(folder), "journal": lambda: f"journal:{tmp_path / 'runs.log'}"}.get(
        storage, lambda: request.getfixturevalue("postgresql")
    )()
    with closing(Queue.create(address, "s", folder=folder, runtime=CPU)) as queue:
        queue.fill(plan.runs())
        started = [start_worker(address, folder) for _ in range(4)]
        by_process = {str(process.pid): process for process in started}
        killed = {}
        while len(killed) < 2:
            assert any(process.poll() is None for process in started), "the workers ended before two could be killed"
            for state in queue.states():
                metrics = folder / state.run.folder / "metrics.jsonl"
                process = by_process.get((state.worker or "").rpartition(":")[2])
                if process is None or len(killed) == 2 or not metrics.is_file():
                    continue
                if 2 <= len(metrics.read_text().splitlines()) <= 15:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    killed[state.run.folder] = metrics.read_text().splitlines()
                    by_process.pop(str(process.pid))
            time.sleep(0.05)
        assert sorted(process.wait(300) for process in started) == [-9, -9, 0, 0]

        trials = queue._study.get_trials()
        complete = [trial.user_attrs["run"]["folder"] for trial in trials if trial.state.name == "COMPLETE"]
        assert sorted(complete) == sorted(run.folder for run in plan.runs())
        lost = [trial.user_attrs["run"]["folder"] for trial in trials if trial.user_attrs.get("ending") == "lost"]
        assert set(killed) <= set(lost)
        # The killed runs were gone on with, not begun again: their first epochs are those of the killed worker.
        for name, lines in killed.items():
            assert (folder / name / "metrics.jsonl").read_text().splitlines()[: len(lines)] == lines

        for run in plan.runs():
            ours, theirs = (read_record(place / run.folder / "result.json") for place in (folder, alone))
            assert essence(ours) == essence(theirs)
