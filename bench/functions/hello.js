const WHICH = 0;

exports.handler = async (event) => ({ hello: event.name, which: WHICH });
