"""A durable function of so many trivial steps."""


def hello(name):
    return {"hello": name}


def handler(event, context):
    for number in range(event["steps"]):
        context.step(f"step-{number}", hello, "bench")
    return {"which": 0}
