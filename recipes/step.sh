# Read by the recipes: `step NAME COMMAND...` runs a command, prints it and its time, and passes over
# one that has ended before. A training that was interrupted goes on (--resume auto). $OUT/done holds
# the seconds of each.

step() {
    local name=$1 start=$SECONDS
    shift
    if [ -e "$OUT/done/$name" ]; then
        echo "== $name: done before"
        return
    fi
    echo "== $name: $*"
    "$@"
    mkdir -p "$OUT/done"
    echo "$((SECONDS - start)) s" | tee "$OUT/done/$name"
}
