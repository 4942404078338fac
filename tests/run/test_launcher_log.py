import logging

from asyncrl.run.launcher_log import logs_to


def test_each_run_of_a_process_has_its_own_warnings_and_nothing_after_it(tmp_path):
    log = logging.getLogger("asyncrl.test")
    for name in ("first", "second"):
        with logs_to(tmp_path / f"{name}.log"):
            log.warning("of the %s", name)
            log.info("not worth a line")
        log.warning("between the runs")
    assert (tmp_path / "first.log").read_text() == "WARNING:asyncrl.test:of the first\n"
    assert (tmp_path / "second.log").read_text() == "WARNING:asyncrl.test:of the second\n"
