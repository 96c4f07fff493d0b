#!/bin/sh
# Fetch (Maven), start and stop a single Apache Kafka node on loopback.
#   run.sh fetch | start | stop | address | status
# RECLAIM_KAFKA_DEV_PORT chooses the port (default 9092; the controller takes the one above).
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
target=$here/target
data=$here/data
port=${RECLAIM_KAFKA_DEV_PORT:-9092}
pid_file=$data/kafka.pid
log_file=$data/kafka.log

say() { printf '%s\n' "$*" >&2; }

need() {
    command -v "$1" >/dev/null 2>&1 || { say "$1 is missing: $2"; exit 69; }
}

fetch() {
    [ -f "$target/lib/.complete" ] && [ "$target/lib/.complete" -nt "$here/pom.xml" ] && return 0
    need mvn 'install Maven (Debian: apt-get install maven)'
    say 'fetching Apache Kafka with Maven'
    rm -rf "$target/lib"
    mvn --quiet --batch-mode -Dstyle.color=never --file "$here/pom.xml" package || { say 'Maven could not fetch Apache Kafka: see its lines above'; exit 69; }
    touch "$target/lib/.complete"
}

running() {
    [ -f "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2>/dev/null
}

# An open port is not yet a broker: wait for Kafka's own word.
ready() {
    grep -q 'Kafka Server started' "$log_file" 2>/dev/null
}

configure() {
    mkdir -p "$data"
    sed -e "s|@PORT@|$port|g" -e "s|@CONTROLLER_PORT@|$((port + 1))|g" -e "s|@DATA@|$data/log|g" \
        "$here/server.properties" > "$data/server.properties"
    printf '%s\n' "$port" > "$data/port"
    [ -f "$data/log/meta.properties" ] && return 0
    cluster=$(java -cp "$target/lib/*" kafka.tools.StorageTool random-uuid 2>/dev/null)
    java -cp "$target/lib/*" kafka.tools.StorageTool format --cluster-id "$cluster" --config "$data/server.properties" >"$log_file" 2>&1 ||
        { say "the storage cannot be formatted; see $log_file"; exit 70; }
}

start() {
    need java 'install Java 17 or later (Debian: apt-get install default-jre-headless)'
    running && { say "Kafka runs already at $(address)"; return 0; }
    fetch
    configure
    nohup java -Xms128m -Xmx512m "-Dlog4j2.configurationFile=$here/log4j2.properties" -cp "$target/lib/*" \
        kafka.Kafka "$data/server.properties" >"$log_file" 2>&1 </dev/null &
    echo $! > "$pid_file"
    tries=0
    until ready; do
        running || { say "Kafka ended while starting; see $log_file"; tail -n 5 "$log_file" >&2; rm -f "$pid_file"; exit 70; }
        tries=$((tries + 1))
        [ "$tries" -lt 120 ] || { say "Kafka does not come up; see $log_file"; exit 70; }
        sleep 0.5
    done
    say "Apache Kafka is ready: RECLAIM_KAFKA_BOOTSTRAP=$(address)"
}

stop() {
    running || { rm -f "$pid_file"; return 0; }
    pid=$(cat "$pid_file")
    kill "$pid"
    tries=0
    while kill -0 "$pid" 2>/dev/null; do
        tries=$((tries + 1))
        [ "$tries" -lt 60 ] || { kill -9 "$pid" 2>/dev/null || true; break; }
        sleep 0.5
    done
    rm -f "$pid_file"
}

address() {
    if [ -f "$data/port" ]; then port=$(cat "$data/port"); fi
    printf '127.0.0.1:%s\n' "$port"
}

case "${1:-}" in
    fetch) fetch ;;
    start) start ;;
    stop) stop ;;
    address) address ;;
    status) if running; then say "runs at $(address)"; else say 'does not run'; exit 1; fi ;;
    *) say 'usage: run.sh fetch|start|stop|address|status'; exit 64 ;;
esac
