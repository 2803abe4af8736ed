# Completion for vitlab's commands in bash, and in zsh after `autoload -U +X bashcompinit && bashcompinit`:
#   eval "$(python train.py -sc install=bash)"
_vitlab() {
  local command=("${COMP_WORDS[@]:0:2}")
  [ "${COMP_WORDS[1]}" = -m ] && command=("${COMP_WORDS[@]:0:3}")
  [ "${COMP_WORDS[0]}" = vitlab ] && [ "$COMP_CWORD" = 1 ] && command=(vitlab)
  case "${command[*]}" in
    *train.py | *evaluate.py | *predict.py | *"-m vitlab."* | vitlab*) ;;
    *) return ;;
  esac
  local choices
  choices=$(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_POINT="$COMP_POINT" "${command[@]}" -sc query=bash 2>/dev/null)
  local IFS=$'\n '
  COMPREPLY=($(compgen -W "$choices" -- "${COMP_WORDS[COMP_CWORD]}"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=/}
complete -o nospace -o default -F _vitlab python python3 vitlab
