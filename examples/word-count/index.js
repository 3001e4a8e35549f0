// Count the words of a text. Input: {"text": "..."}.
exports.handler = async (event, context) => {
  const words = event.text.toLowerCase().match(/\p{L}[\p{L}'-]*/gu) ?? [];
  const counts = new Map();
  for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);
  const top = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 5);
  console.log(`counted ${words.length} words for ${context.awsRequestId}`);
  return { words: words.length, distinct: counts.size, top: Object.fromEntries(top) };
};
