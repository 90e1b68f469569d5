from backpass.training.processes import epoch_seed


def test_no_process_repeats_an_epoch_of_another():
    seeds = {epoch_seed(seed, epoch, process) for seed in (0, 1) for process in range(256) for epoch in range(300)}
    assert len(seeds) == 2 * 256 * 300
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_one_process_has_the_seeds_of_published_records():
    assert [epoch_seed(3, epoch, 0) for epoch in (0, 1, 600)] == [3_000_009, 3_000_010, 3_000_609]
