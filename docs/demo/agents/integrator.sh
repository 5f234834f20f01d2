# An integrator: merges the task's branch and runs the tests again; what fails is not merged.
before=$(git rev-parse HEAD) || exit 1
if git merge --quiet --no-ff -m "Merge $ROLECALL_TASK_ID" "agent/$ROLECALL_TASK_ID" &&
  python -m pytest --quiet; then
  result='{"outcome": "success"}'
else
  git merge --abort 2> /dev/null
  git reset --quiet --hard "$before"
  result='{"outcome": "rejected", "note": "it does not merge, or its tests fail then"}'
fi
echo "$result" > "$ROLECALL_RESULT_FILE"
