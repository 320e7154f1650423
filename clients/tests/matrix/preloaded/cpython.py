# CPython's own tests of sockets and of waiting for them: what each came to, in the order of their names. None
# that leaves the machine.
import sys
import unittest

from test import support

support.use_resources = []


class Outcomes(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.all = {}

    def note(self, test, outcome):
        # The part of a test that fails stands for the whole.
        if self.all.get(test.id(), "ok") == "ok":
            self.all[test.id()] = outcome

    def addSuccess(self, test):
        self.note(test, "ok")

    def addSkip(self, test, reason):
        self.note(test, f"skipped: {reason}")

    def addFailure(self, test, error):
        self.note(test, "failed")
        print(test.id(), self._exc_info_to_string(error, test), file=sys.stderr)

    def addError(self, test, error):
        self.note(test, "error")
        print(test.id(), self._exc_info_to_string(error, test), file=sys.stderr)

    def addExpectedFailure(self, test, error):
        self.note(test, "failed as expected")

    def addUnexpectedSuccess(self, test):
        self.note(test, "ok, which was not expected")


def each(suite):
    for test in suite:
        yield from each(test) if isinstance(test, unittest.TestSuite) else [test]


outcomes = Outcomes()
names = [f"test.test_{module}" for module in ["socket", "select", "poll", "epoll", "selectors"]]
# A virtual machine's way to its host, where there is one, need not lead anywhere.
tests = [test for test in each(unittest.defaultTestLoader.loadTestsFromNames(names)) if "VSOCK" not in test.id()]
unittest.TestSuite(tests).run(outcomes)
for test, outcome in sorted(outcomes.all.items()):
    print(test, outcome)
print(outcomes.testsRun, "tests")
