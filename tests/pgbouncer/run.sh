# Runs PgBouncer in a folder of its own, and removes both when the tests are gone, however they ended: then our standard
# input ends.
#
# $1 the program, $2 the folder; in the environment, where nobody else can read them, SETTINGS and USERS, two files' texts.
# Takes the orders `start` and `kill`, and answers each with a line.

program=$1 folder=$2

trap '' HUP INT TERM
umask 077
mkdir "$folder" && cd "$folder" || exit 1
printf '%s\n' "$SETTINGS" >pgbouncer.ini
printf '%s\n' "$USERS" >users.txt

set -- pgbouncer.ini
if [ "$(id -u)" -eq 0 ]; then
    # It does not run as root.
    chown -R nobody . && set -- -u nobody "$@"
fi

while read -r order; do
    case $order in
        start) "$program" "$@" </dev/null >>log 2>&1 & ;;
        kill) kill -KILL $! && wait $! ;;
    esac 2>/dev/null
    echo done
done

kill -KILL $! 2>/dev/null
cd /
rm -rf "$folder"
