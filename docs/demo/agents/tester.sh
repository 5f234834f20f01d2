# A tester: the whole test suite, in the task's worktree.
if python -m pytest --quiet; then
  outcome=success
else
  outcome=rejected
fi
echo "{\"outcome\": \"$outcome\", \"note\": \"python -m pytest\"}" > "$ROLECALL_RESULT_FILE"
