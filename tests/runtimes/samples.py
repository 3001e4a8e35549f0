"""One function per runtime that does what the conformance test asks for by ``do``, and one plain script."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """``entry`` holds ``code``; ``script`` is a file that is run with the input's path and prints its result.

    ``raised`` is the error type of ``do: error`` by mode.
    """

    entry: str
    handler: str
    code: str
    script: str
    raised: Mapping[str, str]
    by_mode: Mapping[str, str]

    def code_for(self, mode: str) -> str:
        return self.by_mode.get(mode, self.code)


PYTHON = """
def handler(event, context):
    do = event["do"]
    if do == "error":
        raise ValueError(event["value"])
    if do == "hang":
        while True:
            pass
    if do == "print":
        print(event["value"])
        print('{"output": "not mine"}')
        return "printed"
    return event["value"]
"""
PYTHON_SCRIPT = """
import json, sys
print("a print")
print(json.dumps({"script": json.load(open(sys.argv[1]))["value"]}))
"""
NODE = """
exports.handler = async (event) => {
  if (event.do === "error") throw new RangeError(event.value);
  if (event.do === "hang") for (;;);
  if (event.do === "print") {
    console.log(event.value);
    console.log('{"output": "not mine"}');
    return "printed";
  }
  return event.value;
};
"""
NODE_SCRIPT = """
const event = JSON.parse(require("node:fs").readFileSync(process.argv[2]));
console.log("a print");
console.log(JSON.stringify({ script: event.value }));
"""
CUSTOM = """#!/usr/bin/perl
# Lines come on descriptor 3 and leave on 4, so that prints are prints.
use strict; use warnings;
open(my $in, "<&=", 3); open(my $out, ">&=", 4); $| = 1; $out->autoflush(1);
while (my $line = <$in>) {
  my ($input) = $line =~ /^\\{"input": (.*), "context": /;
  my ($do) = $input =~ /"do":"(\\w+)"/;
  my ($value) = $input =~ /"value":(".*")\\}$/;
  if ($do eq "error") { print $out qq({"error": {"type": "Oops", "message": $value, "stack": []}}\\n); next; }
  if ($do eq "hang") { while (1) {} }
  if ($do eq "print") { print substr($value, 1, -1), qq(\\n{"output": "not mine"}\\n); $value = '"printed"'; }
  print $out qq({"output": $value}\\n);
}
"""
CUSTOM_PROCESS = """#!/usr/bin/perl
use strict; use warnings;
open(my $file, "<", $ARGV[0]); my $input = <$file>;
my ($do) = $input =~ /"do":"(\\w+)"/;
my ($value) = $input =~ /"value":(".*")\\}$/;
if ($do eq "error") { print STDERR substr($value, 1, -1), "\\n"; exit 1; }
if ($do eq "hang") { while (1) {} }
if ($do eq "print") { print substr($value, 1, -1), qq(\\n{"output": "not mine"}\\n); $value = '"printed"'; }
if ($do eq "script") { print "a print\\n"; $value = qq({"script": $value}); }
print "$value\\n";
"""
PROVIDED = """#!/usr/bin/python3
import http.client, json, os, sys
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
base = "/2018-06-01/runtime/invocation/"
def ask(method, path, body=None):
    api.request(method, base + path, body)
    answer = api.getresponse()
    return answer.getheader("Lambda-Runtime-Aws-Request-Id"), answer.read()
while True:
    call, body = ask("GET", "next")
    event = json.loads(body)
    do, value = event["do"], event["value"]
    if do == "error":
        ask("POST", f"{call}/error", json.dumps({"errorType": "Oops", "errorMessage": value}))
        continue
    if do == "hang":
        while True:
            pass
    if do == "print":
        print(value)
        print('{"output": "not mine"}')
        sys.stdout.flush()
        value = "printed"
    ask("POST", f"{call}/response", json.dumps(value))
"""

SAMPLES = {
    "python": Sample(
        "main.py", "main.handler", PYTHON, PYTHON_SCRIPT, {"persistent": "ValueError", "process": "ValueError"}, {}
    ),
    "node": Sample(
        "index.js", "index.handler", NODE, NODE_SCRIPT, {"persistent": "RangeError", "process": "RangeError"}, {}
    ),
    "custom": Sample(
        "bootstrap",
        "bootstrap",
        CUSTOM,
        CUSTOM_PROCESS,
        {"persistent": "Oops", "process": "Nova.ExitError"},
        {"process": CUSTOM_PROCESS},
    ),
    "provided": Sample("bootstrap", "bootstrap", PROVIDED, "", {"persistent": "Oops"}, {}),
}
