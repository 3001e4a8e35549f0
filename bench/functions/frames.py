import numpy
import pandas

WHICH = 0


def handler(event, context):
    frame = pandas.DataFrame({"number": numpy.arange(3)})
    return {"sum": int(frame.number.sum()), "which": WHICH}
