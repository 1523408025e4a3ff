// Exits with 1 if redocly (its JSON on standard input) or the AsyncAPI parser finds anything.

import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const redocly = () => JSON.parse(readFileSync(0, "utf8")).problems;
const asyncapi = async () => (await new Parser().parse(readFileSync("asyncapi.json", "utf8"))).diagnostics;

const problems = process.argv[2] === "redocly" ? redocly() : await asyncapi();
for (const problem of problems) console.error(problem);
process.exit(problems.length ? 1 : 0);
