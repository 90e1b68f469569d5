from backpass.training.outcome import Outcome


def epoch(number, **gpu):
    return {"epoch": number, "train_seconds": 1000.0, "measure_seconds": 300.0, "evaluate_seconds": 500.0, **gpu}


def test_gpu_hours_and_memory_of_a_run_that_was_resumed_on_other_gpus():
    outcome = Outcome([epoch(0, gpus=4, peak_memory=70), epoch(1, gpus=2, peak_memory=120), epoch(2, gpus=2)])
    assert outcome.gpu_hours == (4 + 2 + 2) * 1800 / 3600
    assert outcome.peak_memory is None
    assert Outcome(outcome.history[:2]).peak_memory == 120


def test_a_run_with_an_epoch_on_a_cpu_has_neither():
    outcome = Outcome([epoch(0), epoch(1, gpus=1, peak_memory=70)])
    assert (outcome.gpu_hours, outcome.peak_memory) == (None, None)
