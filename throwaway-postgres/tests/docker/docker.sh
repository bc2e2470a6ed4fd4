#!/bin/sh
# As much of Docker's client and engine as the tests need. A container is a folder; its server is
# no child of ours, so that it stays when the client is killed, as a real one does.
umask 022
engine=@ENGINE@
echo "$*" >>"$engine/calls"
command=$1
shift
# The container's name is the last argument of all commands but `create`.
for last; do :; done
container=$engine/$last

case $command in
    version) echo 0 ;;
    create)
        options=
        while [ $# -gt 0 ]; do
            case $1 in
                --name) name=$2; shift ;;
                -p) address=${2%:*}; port=${address##*:}; shift ;;
                postgres) shift; options="$*"; break ;;
            esac
            shift
        done
        container=$engine/$name
        mkdir "$container" && chmod 777 "$container" || exit 1
        echo "$POSTGRES_PASSWORD" >"$container/password"
        cat >"$container/run" <<END
cd "$container"
[ -e data/PG_VERSION ] || @PROGRAMS@/initdb -D "$container/data" -U postgres \\
    --pwfile=password --auth=password --locale=C --encoding=UTF8 --no-sync || exit
exec @PROGRAMS@/postgres -D "$container/data" -p $port -c listen_addresses=127.0.0.1 \\
    -c unix_socket_directories= $options
END
        echo "$name"
        ;;
    start)
        @AS_USER@ setsid sh "$container/run" &
        echo $! >"$container/pid"
        wait $!
        ;;
    # kill --signal NAME container
    kill) kill "-$2" "$(head -n 1 "$container/data/postmaster.pid")" ;;
    rm)
        if [ -d "$container" ]; then
            if [ -e "$container/pid" ]; then
                read -r pid <"$container/pid"
                kill -QUIT "$pid"
                while kill -0 "$pid"; do kill -INT -"$pid"; kill -QUIT "$pid"; sleep 0.02; done 2>/dev/null
            fi
            rm -rf "$container"
            echo "$last"
        else
            echo "Error response from daemon: No such container: $last" >&2
        fi
        ;;
esac
