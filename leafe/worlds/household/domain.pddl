; A house with rooms, places in the rooms, and items at the places. A person stands at one spot: a room's door, or a place's front.
; A lid hides what lies inside until it is opened. Some places wash, warm or chill; a lamp can be switched on where it stands.

(define (domain household)
 (:requirements :adl :typing)
 (:types person room spot place item sort)

 (:predicates
    (standing ?who - person ?spot - spot)
    (within ?spot - spot ?room - room)
    (door ?room - room ?spot - spot)
    (joined ?room - room ?other - room)
    (front ?place - place ?spot - spot)
    (inside ?place - place ?room - room)
    (kindof ?place - place ?kind - sort)
    (lidded ?place - place)
    (opened ?place - place)
    (washes ?place - place)
    (warms ?place - place)
    (chills ?place - place)
    (sortof ?item - item ?kind - sort)
    (portable ?item - item)
    (lamp ?item - item)
    (lies ?item - item ?place - place)
    (carries ?who - person ?item - item)
    (busy ?who - person)
    (washed ?item - item)
    (warmed ?item - item)
    (chilled ?item - item)
    (lit ?item - item)
    (noticed ?spot - spot)
    (counted ?who - person)
 )

 (:action look
    :parameters (?who - person ?spot - spot)
    :precondition (standing ?who ?spot)
    :effect (noticed ?spot))

 (:action inventory
    :parameters (?who - person)
    :precondition ()
    :effect (counted ?who))

 (:action walk
    :parameters (?who - person ?from - spot ?other - room ?to - spot)
    :precondition (and (standing ?who ?from) (door ?other ?to)
                       (exists (?room - room) (and (within ?from ?room) (joined ?room ?other))))
    :effect (and (not (standing ?who ?from)) (standing ?who ?to)))

 (:action go
    :parameters (?who - person ?from - spot ?place - place ?to - spot)
    :precondition (and (standing ?who ?from) (front ?place ?to)
                       (exists (?room - room) (and (within ?from ?room) (inside ?place ?room))))
    :effect (and (not (standing ?who ?from)) (standing ?who ?to)))

 (:action open
    :parameters (?who - person ?spot - spot ?place - place)
    :precondition (and (standing ?who ?spot) (front ?place ?spot) (lidded ?place) (not (opened ?place)))
    :effect (opened ?place))

 (:action close
    :parameters (?who - person ?spot - spot ?place - place)
    :precondition (and (standing ?who ?spot) (front ?place ?spot) (lidded ?place) (opened ?place))
    :effect (not (opened ?place)))

 (:action take
    :parameters (?who - person ?spot - spot ?place - place ?item - item)
    :precondition (and (standing ?who ?spot) (front ?place ?spot) (portable ?item) (lies ?item ?place) (not (busy ?who))
                       (or (not (lidded ?place)) (opened ?place)))
    :effect (and (not (lies ?item ?place)) (carries ?who ?item) (busy ?who)))

 (:action put
    :parameters (?who - person ?spot - spot ?place - place ?item - item)
    :precondition (and (standing ?who ?spot) (front ?place ?spot) (carries ?who ?item)
                       (or (not (lidded ?place)) (opened ?place)))
    :effect (and (lies ?item ?place) (not (carries ?who ?item)) (not (busy ?who))))

 (:action wash
    :parameters (?who - person ?spot - spot ?place - place ?item - item)
    :precondition (and (standing ?who ?spot) (front ?place ?spot) (washes ?place) (carries ?who ?item))
    :effect (washed ?item))

 (:action warm
    :parameters (?who - person ?spot - spot ?place - place ?item - item)
    :precondition (and (standing ?who ?spot) (front ?place ?spot) (warms ?place) (carries ?who ?item))
    :effect (and (warmed ?item) (not (chilled ?item))))

 (:action chill
    :parameters (?who - person ?spot - spot ?place - place ?item - item)
    :precondition (and (standing ?who ?spot) (front ?place ?spot) (chills ?place) (carries ?who ?item))
    :effect (and (chilled ?item) (not (warmed ?item))))

 (:action switch
    :parameters (?who - person ?spot - spot ?place - place ?item - item)
    :precondition (and (standing ?who ?spot) (front ?place ?spot) (lies ?item ?place) (lamp ?item) (not (lit ?item)))
    :effect (lit ?item))
)
