# The keeper: one `sh` for one server. It makes the server's folder, runs the server in it, and
# when nobody holds on to it any more it stops the server and removes the folder. It is not the
# user's process, so it does that also when the user's process was killed.
#
# Who holds on?
#   * Who started the keeper: it has the write end of our standard input. The kernel closes that
#     with the process, however the process ends.
#   * Who joined later (shared servers only): it has opened `door`, a FIFO in the folder, for
#     writing, and has written one byte.
#
# $1 the folder, $2 seconds to linger (0: nobody joins), $3 the ports to try; then what
# programs.sh or docker.sh wants. Ends with status 3 when the folder already exists.
#
# The files in the folder: door; password; port (being tried); log; ended-1 (the server's first
# run is over, and why is in the log), ended-2 and so on; data, or container (its name); and some
# that only we use.

folder=$1 linger=$2 ports=$3
shift 3

# A Ctrl-C at the user's terminal must not stop who cleans up after it. The children start with
# these signals ignored as well; initdb and postgres install handlers of their own.
trap '' HUP INT QUIT TERM
umask 077

# Nothing exists yet. End of file: they were killed before they could say "start".
read -r word && [ "$word" = start ] || exit 0

mkdir "$folder" || { [ -e "$folder" ] && exit 3; exit 1; }

# Without our open door, which would look alive after our death.
pause() { sleep "$1" 4<&-; }

give_up() { cd /; rm -rf "$folder"; exit 1; }
cd "$folder" || give_up

# The door appears with its reader in place, so that a door without a reader proves that its
# keeper is dead. Opened for both first: a FIFO opened only for reading waits for a writer.
mkfifo door.new && exec 3<>door.new 4<door.new 3>&- && mv door.new door || give_up

{ od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; echo; } >password && [ -s password ] || give_up
exec >>log 2>&1

serve() {
    [ -e made ] || { make_server "$@" && : >made; } || return
    for port in $ports; do
        [ -e stop ] && return
        : >log
        echo "$port" >port.new && mv port.new port
        run_server "$@"
        # Somebody was faster on this port: the next one.
        grep -q -i -e 'address already in use' -e 'port is already allocated' log || return
    done
}

# The server does not get our pipe and our door either.
run=0
start() {
    run=$((run + 1))
    { serve "$@"; : >"ended-$run"; } </dev/null 4<&- &
}

# Calls $1 with the other arguments until the server has ended, but not for ever.
end() {
    tries=0
    until [ -e "ended-$run" ] || [ $tries -ge 1000 ]; do
        "$@"
        tries=$((tries + 1))
        pause 0.02
    done
}

# Fails when somebody came in the last moment, and is gone again: the door is open as before. Who
# opens the door looks afterwards whether it is still where it was. So with the door out of the
# way, `cat` tells us of everybody who has found it there.
close_door() {
    # Somebody has removed the folder: nobody can join any more.
    mv door closed || return 0
    rm -f came left
    { cat <&4 >came; : >left; } &
    until [ -s came ] || [ -e left ]; do pause 0.02; done
    [ -s came ] || return 0
    mv closed door
    wait $!
    return 1
}

start "$@"

while read -r word; do
    case $word in
        crash) end stop_server QUIT "$@" ;;
        stop) end stop_server INT "$@" ;;
        start) read -r ports <port; start "$@" ;;
        # Only to a server from programs that is stopped.
        copy) copy_server ;;
    esac
done
# End of file: who started us is gone. Who joined may still be there.

if [ "$linger" != 0 ]; then
    # `cat` ends when the last of them is gone, and prints something if there was one.
    while pause "$linger"; [ -n "$(cat <&4)" ] || ! close_door; do :; done
fi

# Without the folder nothing can be done in order. We lead a process group of our own.
[ -e log ] || kill -KILL 0

# An initdb that is running is left to finish, half a second as a rule: killed, it would leave
# shared memory behind that no process owns.
: >stop
end remove_server "$@"
clean_up "$@"

cd /
until rm -rf "$folder" || [ $tries -ge 1000 ]; do
    tries=$((tries + 1))
    pause 0.02
done
# What would not end in all that time.
[ $tries -ge 1000 ] && kill -KILL 0
exit 0
